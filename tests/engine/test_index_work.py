"""An index is built of work that goes on after an interruption, as a dump is."""

import numpy as np
import pytest

import infer
from metric_learning.engine.embed.dump.partial import Journal
from metric_learning.retrieval.indexes import load_search_index

MODEL = ["--pretrained_model=random", "--model=test_resnet", "--image_shape=3,32,32"]
MODEL += ["--use_gpu=False", "--num_workers=0", "--batch_size=3"]


@pytest.fixture
def flags(toy_tree, tmp_path):
    pytest.importorskip("faiss")
    return [*MODEL, f"--images={toy_tree}", f"--index={tmp_path / 'photos.index'}"]


def vectors_of(file):
    found = load_search_index(file)
    return found, found.vectors.reconstruct_n(0, len(found))


def test_an_index_goes_on_where_it_was(flags, toy_tree, tmp_path, broken_off, monkeypatch, capsys):
    expected, rows = vectors_of(infer.main([*flags[:-1], f"--index={tmp_path / 'whole.index'}"]))
    broken_off(flags, 4)
    assert (tmp_path / "photos.index.partial").is_dir()

    added, add = [], Journal.add
    monkeypatch.setattr(Journal, "add", lambda *words: added.append(words[1]) or add(*words))
    capsys.readouterr()
    found, ours = vectors_of(infer.main(flags))
    assert "4 of 14 parts of the work are there already" in capsys.readouterr().out
    assert added == list(range(4, 14)) and np.array_equal(ours, rows)
    assert found.paths == expected.paths and found.snapshot.digest() == expected.snapshot.digest()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos.index", "whole.index"]


def test_what_is_not_ours_stays(flags, tmp_path, broken_off, error_of):
    folder = tmp_path / "photos.index.partial"
    folder.mkdir()
    (folder / "letter.txt").write_text("dear")
    assert "holds letter.txt" in error_of(infer.main, flags)
    assert (folder / "letter.txt").read_text() == "dear"
    (folder / "letter.txt").unlink()
    broken_off(flags, 2)
    assert "is unfinished work of another command, its batch size" in error_of(
        infer.main, [*flags, "--batch_size=5"]
    )


def test_an_index_of_nothing_leaves_nothing(tmp_path, error_of):
    pytest.importorskip("faiss")
    listed = tmp_path / "list.txt"
    listed.write_text("gone.png\n")
    words = [*MODEL, f"--images={listed}", f"--index={tmp_path / 'photos.index'}"]
    assert "none of the 1 images can be read: cannot read image gone.png" in error_of(
        infer.main, words
    )
    assert [path.name for path in tmp_path.iterdir()] == ["list.txt"]
