# make demo | test | slow | check | docs | bench: each sets everything up first, in .venv.
# make gpu: checks a GPU with the environment that is there.
# TORCH_BACKEND=cpu (or cu128, ...) is handed to uv as --torch-backend.

VENV := .venv
PYTHON := $(VENV)/bin/python
.PHONY: setup demo test slow check docs bench gpu

setup: $(VENV)/.installed

$(VENV)/.installed: requirements-base.txt requirements.txt requirements-dev.txt pyproject.toml setup.py
	python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet uv==0.13.9
	$(PYTHON) -m uv pip install --python $(PYTHON) \
		$(if $(TORCH_BACKEND),--torch-backend=$(TORCH_BACKEND)) --requirement requirements-dev.txt
	$(PYTHON) -m uv pip install --quiet --python $(PYTHON) --no-deps --editable .
	touch $@

# Two processes with a thread each take half of the time of one.
test: setup
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2 --dist=loadfile

# What takes minutes, such as the check of a GPU on tiny sizes and the CPU.
slow: setup
	$(PYTHON) -m pytest -m slow

check: setup
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy --package metric_learning --package benchmarks

# The pages of docs/ as a site in site/; a link that leads nowhere is an error.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict --quiet

$(VENV)/.installed-docs: $(VENV)/.installed requirements-docs.txt
	$(PYTHON) -m uv pip install --quiet --python $(PYTHON) --requirement requirements-docs.txt
	touch $@

# The command line, reading, training and exact ranks, each beside others; nearly an hour.
bench: setup
	$(PYTHON) -m benchmarks.speed.door
	$(PYTHON) -m benchmarks.speed.reader
	$(PYTHON) -m benchmarks.speed.train
	$(PYTHON) -m benchmarks.speed.retrieval

# The check of a GPU, nine minutes; a machine that has one may be unable to install: its own Python.
GPU_PYTHON ?= python3
gpu:
	$(GPU_PYTHON) -m benchmarks.gpu.check --out=output/gpu

# Arcmargin, then EML, on the built-in data set; evaluated before, between and after.
DEMO := output/demo
demo: setup
	rm -rf $(DEMO)
	$(PYTHON) data/make_demo.py
	$(PYTHON) eval.py --config=configs/demo_untrained.yaml --json=$(DEMO)/untrained.json
	$(PYTHON) train_elem.py --config=configs/demo_arcmargin.yaml
	$(PYTHON) eval.py --pretrained_model=$(DEMO)/arcmargin/last.pt --batch_size=50 \
		--json=$(DEMO)/arcmargin.json
	$(PYTHON) train_pair.py --config=configs/demo_eml.yaml
	$(PYTHON) eval.py --pretrained_model=$(DEMO)/eml/last.pt --batch_size=50 --json=$(DEMO)/eml.json
	$(PYTHON) infer.py --pretrained_model=$(DEMO)/eml/last.pt --batch_size=50 \
		--output_dir=$(DEMO)/features > $(DEMO)/features.txt
	$(PYTHON) -m metric_learning report $(DEMO)/eml/last.pt --report_dir=$(DEMO)/report
	$(PYTHON) -m metric_learning summary $(DEMO) untrained arcmargin eml
