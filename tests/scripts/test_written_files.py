"""What the scripts write: nothing of others is replaced, nothing is half there, no name lost."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import eval as eval_script
import infer
from metric_learning import open_features
from metric_learning.data import make_demo
from metric_learning.data.prepare import __main__ as prepare
from metric_learning.engine.report import __main__ as report
from metric_learning.engine.report import summary
from metric_learning.models import build_model
from metric_learning.pretrained import fetch_weights
from metric_learning.reader import check

MODEL = ["--model=test_resnet", "--image_shape=3,32,32", "--use_gpu=False", "--num_workers=0"]
RANDOM = [*MODEL, "--pretrained_model=random"]
STRANGE = ["plain.png", "é ü.png", "not\udcff utf.png", "two\nlines.png", "back\\slash.png"]
STRANGE.append('"x".png')
PHOTO = b"\xff\xd8\xff" + bytes(99)


@pytest.fixture
def photo(tmp_path):
    """Return a function that puts a photo under a name, which must stay as it is."""
    written = []

    def put(name):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(PHOTO)
        written.append(file)
        return file

    yield put
    assert written and all(file.read_bytes() == PHOTO for file in written)


@pytest.fixture
def strange(tmp_path):
    """A folder of images with names that some files cannot hold."""
    folder = tmp_path / "pictures" / "one\nclass"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in STRANGE:
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / name)
    return folder


def test_no_door_writes_over_a_photo(photo, toy_tree, error_of, tmp_path):
    """The weights are nowhere: what cannot be written is found first."""
    scanned = tmp_path / "list.csv"
    prepare.main(["scan", str(toy_tree), f"--output={scanned}", "--num_workers=0"])
    nowhere = "--pretrained_model=nowhere.pt"
    image = f"--images={toy_tree}"
    doors = [
        (eval_script.main, [nowhere, f"--json={photo('a.json')}"]),
        (eval_script.main, [nowhere, f"--class_table={photo('a.csv')}"]),
        (eval_script.main, ["--compare", "a.pt", "b.pt", f"--json={photo('b.pt')}"]),
        (infer.main, [*RANDOM, image, f"--index={photo('a.index')}"]),
        (infer.main, [*RANDOM, image, f"--output_dir={photo('features/labels.txt').parent}"]),
        (infer.main, [*RANDOM, image, f"--output_dir={photo('file')}"]),
        (
            infer.main,
            [*RANDOM[:2], RANDOM[-1], "--export=torchscript"]
            + [f"--output={photo('a.torchscript')}"],
        ),
        (report.main, [str(scanned), f"--report_dir={photo('page/index.html').parent}"]),
        (report.main, [str(scanned), f"--report_dir={photo('map/map.png').parent}"]),
        (summary.main, [str(photo("report/curves.png").parent.parent), "nothing"]),
        (prepare.main, ["scan", str(toy_tree), f"--output={photo('photo.jpg')}"]),
        (prepare.main, ["split", str(scanned), f"--output={photo('split.csv')}"]),
        (prepare.main, ["folds", str(scanned), f"--output={photo('folds.csv')}"]),
        (prepare.main, ["filter", str(scanned), f"--report={photo('list_removed.csv')}"]),
        (check.main, ["--dataset=folder", f"--data_dir={toy_tree}", f"--json={photo('c.json')}"]),
        (make_demo.main, [f"--dir={photo('demo/demo.json').parent}"]),
        (fetch_weights.main, ["--model=ResNet18", f"--output={photo('w.safetensors')}"]),
    ]
    for main, words in doors:
        error = error_of(main, words)
        assert "so nothing is replaced" in error or "found a file" in error, error
    assert "is what is read" in error_of(prepare.main, ["filter", scanned, f"--output={scanned}"])


def test_a_dump_is_replaced_as_a_whole_and_what_was_changed_in_it_stays(
    toy_tree, tmp_path, error_of, capsys
):
    folder = tmp_path / "features"
    test = ["--dataset=folder", f"--data_dir={toy_tree}", f"--output_dir={folder}"]
    images = [f"--images={toy_tree / 'test'}", f"--output_dir={folder}"]
    infer.main([*RANDOM, *test])
    (folder / "report").mkdir()
    (folder / "report" / "kept").touch()
    infer.main([*RANDOM, *images])  # which has no labels
    assert sorted(os.listdir(folder)) == ["features.npy", "meta.json", "paths.txt", "report"]
    assert os.listdir(folder / "report") == ["kept"]

    (folder / "labels.txt").write_text("mine\n")
    assert "holds labels.txt" in error_of(infer.main, [*RANDOM, *images])
    (folder / "labels.txt").unlink()
    text = (folder / "paths.txt").read_text()
    (folder / "paths.txt").write_text(text + "note\n")
    assert "holds paths.txt" in error_of(infer.main, [*RANDOM, *images])
    (folder / "paths.txt").write_text(text)

    meta = json.loads((folder / "meta.json").read_text())
    del meta["files"]  # as earlier versions wrote it
    (folder / "meta.json").write_text(json.dumps(meta))
    shutil.rmtree(folder / "report")
    infer.main([*RANDOM, *test])
    assert (folder / "labels.txt").is_file() and os.listdir(tmp_path) == ["features"]


def test_strange_names_come_back(strange, tmp_path, capsys):
    folder = infer.main([*RANDOM, f"--images={strange}", f"--output_dir={tmp_path / 'features'}"])
    features = open_features(folder)
    assert sorted(features.paths) == sorted(str(strange / name) for name in STRANGE)
    assert len((folder / "paths.txt").read_bytes().splitlines()) == len(STRANGE)

    pytest.importorskip("faiss")
    index, answers = tmp_path / "a.index", tmp_path / "a.json"
    infer.main([*RANDOM, f"--images={strange}", f"--index={index}"])
    capsys.readouterr()
    query = [f"--query={strange}", "--topk=1", f"--json={answers}"]
    infer.main([RANDOM[-1], *MODEL[2:], f"--index={index}", *query])
    lines = [line for line in capsys.readouterr().out.splitlines() if line[:5] == "query"]
    assert len(lines) == len(STRANGE)
    found = json.loads(answers.read_text())["queries"]
    assert sorted(query["path"] for query in found) == sorted(features.paths)
    assert all(query["neighbours"][0]["path"] == query["path"] for query in found)


def test_class_tables_hold_every_name(strange, tmp_path):
    tree, table = tmp_path / "pictures", tmp_path / "table.csv"
    shutil.copytree(strange, tree / "b\udcff")
    data = ["--dataset=folder", f"--data_dir={tree}", "--test_classes=1-2"]
    eval_script.main([*RANDOM, *data, f"--class_table={table}", f"--json={tmp_path / 'a.json'}"])
    content = table.read_bytes()
    assert b'"one\nclass",' in content and b"\nb\xff," in content


def test_nan_is_no_result(toy_tree, tmp_path, error_of):
    state = build_model("test_resnet", image_size=32).backbone.state_dict()
    state["bn1.weight"][:] = np.nan
    torch.save(state, tmp_path / "nan.pt")
    words = [*MODEL, f"--pretrained_model={tmp_path / 'nan.pt'}", f"--images={toy_tree / 'test'}"]
    first = str(toy_tree / "test" / "class_6" / "0.png")
    for place in ("output_dir", "index"):
        error = error_of(infer.main, [*words, f"--{place}={tmp_path / place}"])
        assert f"the embedding of {first} holds NaN" in error
        assert not (tmp_path / place).exists()
