"""The steps of `make demo`, with fewer updates, on a smaller drawing of the demo data set."""

import re
from pathlib import Path

import numpy as np
import pytest

import eval as eval_script
import infer
import train_elem
import train_pair
from metric_learning.data import make_demo
from metric_learning.engine.report import summary

ROOT = Path(__file__).resolve().parent.parent.parent


def test_the_steps_of_the_demo_follow_one_another(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_demo.main(["--dir=data", "--num_classes=30", "--views=3"])
    quick = ["--data_dir=data", "--num_workers=0", "--total_iter_num=2", "--train_batch_size=8"]

    def config(name):
        return f"--config={ROOT / 'configs' / name}.yaml"

    out = "output/demo"
    eval_script.main([config("demo_untrained"), "--data_dir=data", f"--json={out}/untrained.json"])
    train_elem.main([config("demo_arcmargin"), *quick])
    train_pair.main([config("demo_eml"), *quick])
    for run in ("arcmargin", "eml"):
        weights = f"--pretrained_model={out}/{run}/last.pt"
        eval_script.main([weights, "--batch_size=50", f"--json={out}/{run}.json"])
    infer.main([weights, "--batch_size=50", f"--output_dir={out}/features"])
    assert np.load(f"{out}/features/features.npy").shape == (45, 512)
    table = summary.main([out, "untrained", "arcmargin", "eml"])
    assert re.search(r"^recall@1( +\d+\.\d\d){3}$", table, re.MULTILINE)
    for picture in ("curves.png", "neighbours.png"):
        assert Path(out, "report", picture).is_file()


def test_the_makefile_runs_these_steps():
    makefile = (ROOT / "Makefile").read_text()
    for name in ("demo_untrained", "demo_arcmargin", "demo_eml"):
        assert f"configs/{name}.yaml" in makefile
    with pytest.raises(SystemExit):
        train_elem.main([f"--config={ROOT / 'configs' / 'demo_eml.yaml'}"])
