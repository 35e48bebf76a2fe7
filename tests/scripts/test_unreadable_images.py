"""infer.py --on_bad_image: what cannot be read is left out, listed and counted."""

import json

import numpy as np
import pytest
from PIL import Image

import infer
from metric_learning.engine.search import search as search_module
from metric_learning.retrieval.indexes import load_search_index

MODEL = ["--pretrained_model=random", "--model=test_resnet", "--image_shape=3,32,32"]
MACHINE = ["--use_gpu=False", "--batch_size=2"]


@pytest.fixture
def photos(tmp_path):
    """Five photos, of which b is cut short and d no image."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, name in enumerate("abcde"):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    whole = (folder / "b.png").read_bytes()
    (folder / "b.png").write_bytes(whole[: len(whole) // 2])
    (folder / "d.png").write_bytes(b"no image")
    return folder


@pytest.fixture
def run(photos):
    return lambda *flags: infer.main([*MODEL, *MACHINE, f"--images={photos}", *map(str, flags)])


def good_features(folder):
    """The features of the readable photos, each embedded alone."""
    found = []
    for name in "ace":
        out = folder / name
        flags = [*MODEL, *MACHINE, "--num_workers=0", f"--output_dir={out}"]
        infer.main([*flags, f"--images={folder / 'photos' / name}.png"])
        found.append(np.load(out / "features.npy")[0])
    return np.stack(found)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_dump_holds_the_others(run, photos, tmp_path, capsys, num_workers):
    expected = good_features(tmp_path)
    capsys.readouterr()
    folder = run(
        "--on_bad_image=skip", f"--output_dir={tmp_path / 'out'}", f"--num_workers={num_workers}"
    )
    out = capsys.readouterr().out
    features = np.load(folder / "features.npy")
    np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-6)
    paths = [str(photos / f"{name}.png") for name in "ace"]
    assert (folder / "paths.txt").read_text().splitlines() == paths
    broken = json.loads((folder / "meta.json").read_text())["broken"]
    assert [*broken] == [str(photos / "b.png"), str(photos / "d.png")]
    assert all(f"{error}: left out" in out for error in broken.values())
    assert "warning: 2 of 5 images are unreadable and left out" in out
    assert [f"Test-{n}-feature" in out for n in range(4)] == [True] * 3 + [False]


def test_a_dump_stops_at_the_first_by_default(run, photos, tmp_path, error_of):
    error = error_of(infer.main, [*MODEL, *MACHINE, f"--images={photos}", "--num_workers=0"])
    assert str(photos / "b.png") in error


def test_nothing_that_can_be_read_is_an_error(photos, error_of):
    for name in "ace":
        (photos / f"{name}.png").unlink()
    flags = [*MODEL, *MACHINE, f"--images={photos}", "--num_workers=0", "--on_bad_image=skip"]
    assert "none of the 2 images can be read" in error_of(infer.main, flags)


def test_an_index_and_queries(run, photos, tmp_path, capsys, error_of, monkeypatch):
    """An index leaves out by default, queries by choice; answers are written, then shown."""
    pytest.importorskip("faiss")
    file = run(f"--index={tmp_path / 'photos.index'}", "--num_workers=0")
    found = load_search_index(file)
    assert [path.rsplit("/", 1)[1] for path in found.paths] == ["a.png", "c.png", "e.png"]
    assert len(found.metadata["broken"]) == 2
    assert "warning: 2 of 5" in capsys.readouterr().out
    strict = [*MODEL, *MACHINE, f"--images={photos}", f"--index={file}", "--on_bad_image=error"]
    assert str(photos / "b.png") in error_of(infer.main, [*strict, "--num_workers=0"])

    asked = [MODEL[0], *MACHINE, f"--index={file}", f"--query={photos}", "--topk=1"]
    assert str(photos / "b.png") in error_of(infer.main, [*asked, "--num_workers=0"])
    answers = tmp_path / "answers.json"
    monkeypatch.setattr(search_module, "print_answers", lambda _: (_ for _ in ()).throw(OSError()))
    with pytest.raises(SystemExit):
        infer.main([*asked, "--num_workers=0", "--on_bad_image=skip", f"--json={answers}"])
    written = json.loads(answers.read_text())
    assert [query["neighbours"][0]["path"] == query["path"] for query in written["queries"]] == [
        True
    ] * 3
    assert len(written["broken"]) == 2
