"""The comparison of all losses: which rate is chosen, what is kept, and the flags of each run."""

import json
from pathlib import Path

import pytest

from benchmarks.quality import cub50_losses
from metric_learning.common.flags import parse_flags
from metric_learning.losses import ELEM_LOSSES


@pytest.fixture
def trained(monkeypatch):
    """Flags of the trainings, which take no time; a rate of 2e-4 is the better one."""
    runs = []

    def train(script):
        def main(argv):
            flags = parse_flags("", script.FLAGS, argv)
            runs.append(flags)
            folder = Path(flags.model_save_dir) / flags.run_name
            folder.mkdir(parents=True)
            return folder

        return main

    def evaluate(argv):
        file = Path(next(flag for flag in argv if flag.startswith("--json=")).partition("=")[2])
        file.parent.mkdir(parents=True, exist_ok=True)
        recall = 0.2 if not runs else 0.5 + 1000 * runs[-1].lr + 0.01 * runs[-1].seed
        about = {"flags": {}, "recipe": {}, "depends_on": {"weights": f"sha256:{len(runs)}"}}
        metrics = dict.fromkeys(cub50_losses.METRICS, recall)
        file.write_text(json.dumps(metrics | {"evaluated": about}))

    for script in (cub50_losses.train_elem, cub50_losses.train_pair):
        monkeypatch.setattr(script, "main", train(script))
    monkeypatch.setattr(cub50_losses.evaluation, "main", evaluate)
    return runs


def test_the_better_rate_trains_the_final_runs_which_are_kept(trained, tmp_path):
    flags = [f"--output={tmp_path}", "--seeds=0,1", "--rows", "softmax"]
    table = cub50_losses.main(flags)
    assert [(run.train_classes, run.lr, run.seed) for run in trained] == [
        *(("1-15", float(rate), 0) for rate in cub50_losses.RATES),
        *(("1-25", 2e-4, seed) for seed in (0, 1)),
    ]
    lines = table.splitlines()
    assert lines[2].startswith("| frozen | 20.0 |") and lines[2].endswith("| 1 |")
    assert lines[3].startswith("| softmax | 70.5 ± 0.7 |") and lines[3].endswith("| 2 |")
    assert cub50_losses.main(flags) == table and len(trained) == 6
    assert not list(tmp_path.glob("*/*.pt"))


def test_results_of_other_flags_are_not_taken(trained, tmp_path, capsys):
    flags = [f"--output={tmp_path}", "--seeds=0", "--rows", "softmax"]
    cub50_losses.main(flags)
    (tmp_path / "softmax_0.flags.json").unlink()
    cub50_losses.main(flags)  # again where it is not known what made a result
    assert len(trained) == 6
    with pytest.raises(SystemExit):
        cub50_losses.main([*flags, "--weight_decay=0.1"])
    assert "made with other flags (--weight_decay=0.1): choose" in capsys.readouterr().err


def test_every_row_trains_with_flags_that_its_script_knows(trained, tmp_path):
    cub50_losses.main([f"--output={tmp_path}", "--seeds=0"])
    assert len(trained) == (len(cub50_losses.RATES) + 1) * len(cub50_losses.ROWS)
    assert {run.train_batch_size * run.total_iter_num for run in trained} == {2100}
    for run in trained:  # the rate of weights is refused where a loss has none
        has_weights = run.loss_name in ELEM_LOSSES or run.alpha > 0
        assert (run.lr_loss_mult is not None) == has_weights
