"""Checkpoints: atomic, whole, pruned, and never a way to run a stranger's code."""

import pickle

import pytest
import torch

from engine.checkpoints import PARTS, load_checkpoint, prune, save_checkpoint
from models.atomic import write_atomically


def checkpoint():
    return {part: {"value": torch.arange(3)} for part in PARTS}


def test_what_is_saved_is_loaded(tmp_path):
    save_checkpoint(tmp_path / "last.pt", checkpoint())
    loaded = load_checkpoint(tmp_path / "last.pt")
    assert tuple(loaded) == PARTS and loaded["model"]["value"].tolist() == [0, 1, 2]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "last.pt"
    path.write_text("old")

    def fail(temporary):
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


class Payload:
    def __reduce__(self):
        return (open, ("ran", "w"))


@pytest.mark.parametrize("content", ["pickle", "text", "empty", "truncated"])
def test_a_file_that_is_no_checkpoint_is_one_clear_error(tmp_path, content, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "last.pt"
    save_checkpoint(path, checkpoint())
    data = {
        "pickle": pickle.dumps(Payload()),
        "text": b"no checkpoint",
        "empty": b"",
        "truncated": path.read_bytes()[:-100],
    }[content]
    path.write_bytes(data)
    with pytest.raises(ValueError, match="is damaged or not written by this project"):
        load_checkpoint(path)
    assert not (tmp_path / "ran").exists()


def test_bare_weights_are_no_checkpoint(tmp_path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="give it as --pretrained_model"):
        load_checkpoint(tmp_path / "weights.pt")


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.pt does not exist"):
        load_checkpoint(tmp_path / "nowhere.pt")


@pytest.mark.parametrize(("keep", "kept"), [(2, [9, 10]), (0, [1, 2, 9, 10]), (9, [1, 2, 9, 10])])
def test_prune_keeps_the_newest_by_step(tmp_path, keep, kept):
    for step in (1, 2, 9, 10):
        (tmp_path / f"step_{step}.pt").touch()
    (tmp_path / "last.pt").touch()
    prune(tmp_path, keep)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"last.pt", *(f"step_{step}.pt" for step in kept)}
