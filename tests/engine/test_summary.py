"""The side-by-side table and the pictures of a demo-like folder."""

import json

import numpy as np
import pytest
from PIL import Image

from metric_learning.engine.report import summary


@pytest.fixture
def folder(tmp_path, toy_tree):
    for name, recall in (("untrained", 0.25), ("eml", 0.875)):
        result = {
            "recall@1": recall,
            "recall@1_chance": 0.2,
            "map@r": 0.5,
            "queries": 16,
            "evaluated": {},
        }
        result["recall@1_interval"] = [0.1, 0.9]
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    (tmp_path / "eml").mkdir()
    records = [
        {"kind": "train", "step": 1, "loss": 2.0},
        {"kind": "train", "step": 2, "loss": 1.0},
        {"kind": "test", "step": 2, "recall@1": 0.875},
    ]
    (tmp_path / "eml" / "stats.jsonl").write_text("\n".join(map(json.dumps, records)))
    paths = sorted(map(str, (toy_tree / "test").glob("*/*.png")))
    dump = tmp_path / "features"
    dump.mkdir()
    (dump / "paths.txt").write_text("\n".join(paths) + "\n")
    (dump / "labels.txt").write_text("".join(f"{n // 4}\n" for n in range(len(paths))))
    np.save(dump / "features.npy", np.random.default_rng(0).normal(size=(len(paths), 4)))
    return tmp_path


def test_table_and_pictures(folder, capsys):
    table = summary.main([str(folder), "untrained", "eml"])
    assert table.splitlines() == [
        "                    untrained         eml",
        "recall@1                25.00       87.50",
        "map@r                   50.00       50.00",
        "recall@1_chance         20.00       20.00",
    ]
    out = capsys.readouterr().out
    for name in ("curves.png", "neighbours.png"):
        assert str(folder / "report" / name) in out
        with Image.open(folder / "report" / name) as picture:
            assert min(picture.size) > 300 and np.unique(picture.convert("L")).size > 20


def test_a_missing_evaluation_is_one_line(folder, capsys):
    with pytest.raises(SystemExit) as stop:
        summary.main([str(folder), "nothing"])
    assert stop.value.code == 2 and "nothing.json" in capsys.readouterr().err
