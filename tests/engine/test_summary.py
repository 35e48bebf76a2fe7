"""The side-by-side table and the pictures of a demo-like folder."""

import json

import numpy as np
import pytest
from PIL import Image

from metric_learning.engine.report import summary


@pytest.fixture
def folder(tmp_path, toy_tree):
    for name, recall in (("untrained", 0.25), ("eml", 0.875)):
        depends_on = {"weights": f"sha256:{name}", "images": "16 images, sha256:1"}
        about = {"depends_on": depends_on, "flags": {}}
        result = {
            "recall@1": recall,
            "recall@1_chance": 0.2,
            "map@r": 0.5,
            "queries": 16,
            "evaluated": about,
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
    meta = {"depends_on": {"weights": "sha256:eml"}}
    (dump / "meta.json").write_text(json.dumps(meta))
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


@pytest.mark.parametrize(
    ("file", "other", "words"),
    [
        ("eml.json", '"16 images, sha256:2"', "cannot stand in one table: they differ in images"),
        ("eml.json", "3", "cannot stand in one table"),
        ("features/meta.json", '"sha256:1"', "are of other weights than untrained.json, eml.json"),
        ("features/meta.json", "", "does not say of which weights"),
        ("untrained.json", "", "is damaged"),
    ],
)
def test_what_does_not_belong_together_is_refused(folder, capsys, file, other, words):
    text = (folder / file).read_text()
    before = '"sha256:eml"' if "meta" in file else '"16 images, sha256:1"'
    (folder / file).write_text(text.replace(before, other))
    with pytest.raises(SystemExit):
        summary.main([str(folder), "untrained", "eml"])
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_results_by_another_distance_do_not_join(folder, capsys, distance):
    """Those of earlier versions, which do not say it, are by cosine."""
    result = json.loads((folder / "eml.json").read_text())
    result["evaluated"]["flags"] = {"distance": distance}
    (folder / "eml.json").write_text(json.dumps(result))
    if distance == "cosine":
        assert "map@r" in summary.main([str(folder), "untrained", "eml"])
        return
    with pytest.raises(SystemExit):
        summary.main([str(folder), "untrained", "eml"])
    assert "cannot stand in one table: they differ in --distance" in capsys.readouterr().err


def test_a_missing_evaluation_is_one_line(folder, capsys):
    with pytest.raises(SystemExit) as stop:
        summary.main([str(folder), "nothing"])
    assert stop.value.code == 2 and "nothing.json" in capsys.readouterr().err
