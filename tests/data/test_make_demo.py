"""The demo data set: layout, determinism, repeated runs, errors, and how hard it is."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metric_learning.data import make_demo
from metric_learning.data.draw.products import KINDS, draw_products

ROOT = Path(__file__).resolve().parent.parent.parent
SMALL = ["--num_classes=20", "--views=3", "--size=32"]


def _fails(*argv):
    """Whether the command ends with a user error."""
    with pytest.raises(SystemExit) as stop:
        make_demo.main(list(argv))
    return stop.value.code == 2


def _rows(folder, split):
    header, *lines = (folder / f"Ebay_{split}.txt").read_text().splitlines()
    assert header == "image_id class_id super_class_id path"
    return [line.split() for line in lines]


def _files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "demo"
    assert make_demo.main([f"--dir={folder}"]) == 0
    return folder


def test_layout_is_that_of_sop(demo):
    train, test = _rows(demo, "train"), _rows(demo, "test")
    assert [int(row[0]) for row in train + test] == list(range(1, 801))
    assert [int(row[1]) for row in train] == np.repeat(np.arange(1, 51), 8).tolist()
    assert [int(row[1]) for row in test] == np.repeat(np.arange(51, 101), 8).tolist()
    for rows in (train, test):
        super_classes = [int(row[2]) for row in rows]
        assert super_classes == np.repeat(np.arange(1, 6), 80).tolist()
    folders = {Path(row[3]).parent.name for row in train + test}
    assert folders == {f"{kind}_final" for kind in KINDS}
    assert len({row[3] for row in train + test}) == 800
    for row in train + test:
        with Image.open(demo / row[3]) as image:
            assert (image.size, image.mode, image.format) == ((96, 96), "RGB", "JPEG")


@pytest.mark.parametrize("side", [96, 32])
@pytest.mark.parametrize("normalised", [False, True], ids=["euclidean", "cosine"])
def test_pixels_do_not_solve_it(demo, side, normalised):
    pixels, labels = [], []
    for _, class_id, _, path in _rows(demo, "test"):
        with Image.open(demo / path) as image:
            small = image.resize((side, side), Image.Resampling.BOX)
            pixels.append(np.asarray(small, dtype=np.float64).ravel() / 255)
        labels.append(int(class_id))
    assert 0.04 < _recall_at_1(np.stack(pixels), np.array(labels), normalised) < 0.45


def test_colours_do_not_solve_it(demo):
    histograms, labels = [], []
    for _, class_id, _, path in _rows(demo, "test"):
        with Image.open(demo / path) as image:
            colours = np.asarray(image).reshape(-1, 3)
        histograms.append(np.histogramdd(colours, bins=6, range=[(0, 256)] * 3)[0].ravel())
        labels.append(int(class_id))
    assert _recall_at_1(np.sqrt(histograms), np.array(labels), True) < 0.3


def _recall_at_1(vectors, labels, normalised):
    if normalised:
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    squares = (vectors**2).sum(axis=1)
    distances = squares[:, None] + squares - 2 * vectors @ vectors.T
    np.fill_diagonal(distances, np.inf)
    return (labels[distances.argmin(axis=1)] == labels).mean()


def test_products_of_a_kind_differ_in_several_traits():
    products = draw_products(20, np.random.default_rng(0))
    traits = np.array([[p.shape, p.part, p.pattern, p.palette, p.trim] for p in products])
    differing = (traits[:, None] != traits).sum(axis=2)[np.triu_indices(20, 1)]
    assert differing.min() >= 2
    assert len(draw_products(300, np.random.default_rng(0))) == 300


def test_the_seed_decides_the_images(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert make_demo.main([f"--dir={tmp_path / name}", f"--seed={seed}", *SMALL]) == 0
    assert _files(tmp_path / "a") == _files(tmp_path / "b")
    different = _files(tmp_path / "c")
    images = [name for name in different if name.endswith(".JPG")]
    assert len(images) == 60
    assert all(
        different[name] != data for name, data in _files(tmp_path / "a").items() if name in images
    )


def test_a_second_run_does_nothing_and_other_arguments_redraw(tmp_path, capsys):
    folder = tmp_path / "demo"
    assert make_demo.main([f"--dir={folder}", *SMALL]) == 0
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    capsys.readouterr()
    assert make_demo.main([f"--dir={folder}", *SMALL]) == 0
    assert "is there already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert make_demo.main([f"--dir={folder}", *SMALL, "--views=2"]) == 0
    assert len(list(folder.rglob("*.JPG"))) == 40
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(make_demo, "draw_view", full_disk)
    assert _fails(f"--dir={tmp_path / 'demo'}", *SMALL)
    assert list(tmp_path.iterdir()) == []


def test_something_else_is_not_overwritten(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("precious")
    assert _fails(f"--dir={tmp_path}", *SMALL)
    assert "choose another name" in capsys.readouterr().err
    assert (tmp_path / "mine.txt").read_text() == "precious"
    assert _fails(f"--dir={tmp_path / 'mine.txt'}", *SMALL)


@pytest.mark.parametrize(
    "option", ["--num_classes=8", "--num_classes=21", "--views=1", "--size=4", "--seed=-1"]
)
def test_arguments_out_of_range_are_one_line(option, tmp_path, capsys):
    assert _fails(f"--dir={tmp_path / 'demo'}", option)
    error = capsys.readouterr().err
    assert error.startswith("error: expected")
    assert option.split("=")[0] in error
    assert error.count("\n") == 1
    assert not (tmp_path / "demo").exists()


def test_it_runs_as_a_script(tmp_path):
    command = [sys.executable, "data/make_demo.py", f"--dir={tmp_path / 'demo'}", *SMALL]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("drew the demo data set (20 classes, 3 views each, 32 pixels")
    assert json.loads((tmp_path / "demo" / make_demo.MARKER).read_text())["views"] == 3
