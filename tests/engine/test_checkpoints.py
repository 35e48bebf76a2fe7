"""Checkpoints: atomic, whole, checked, pruned, and never a way to run a stranger's code."""

import pickle
import re
import zipfile

import numpy as np
import pytest
import torch

from metric_learning.common.atomic import remove_leftovers, write_atomically
from metric_learning.engine.run.checkpoints import (
    PARTS,
    DamagedError,
    load_checkpoint,
    newest_good,
    prune,
    save_checkpoint,
)


def checkpoint():
    states = {part: {"value": torch.arange(3)} for part in PARTS[:3]}
    return {**states, "step": 3, "best": {}, "meta": {"flags": {}, "loss_options": {}}}


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


@pytest.mark.parametrize("lacks", ["", "meta"])
def test_parts_of_other_versions(tmp_path, lacks):
    """An optional part may lack, a former one is not used, an unknown one is refused."""
    parts = {part: value for part, value in checkpoint().items() if part != lacks}
    torch.save(parts | {"random_state": torch.zeros(1)}, tmp_path / "last.pt")
    if lacks:
        with pytest.raises(ValueError, match="no training state"):
            load_checkpoint(tmp_path / "last.pt")
    else:
        assert load_checkpoint(tmp_path / "last.pt")["model"]["value"].tolist() == [0, 1, 2]
    torch.save(checkpoint() | {"later": 1}, tmp_path / "last.pt")
    with pytest.raises(ValueError, match="holds later, which this version does not know"):
        load_checkpoint(tmp_path / "last.pt")


@pytest.mark.parametrize("part", [{"step": "4"}, {"step": -1}, {"meta": [1]}, {"model": None}])
def test_parts_of_another_kind_are_an_error(tmp_path, part):
    torch.save(checkpoint() | part, tmp_path / "last.pt")
    with pytest.raises(DamagedError, match=f"expected {next(iter(part))} to be"):
        load_checkpoint(tmp_path / "last.pt")


def test_objects_in_a_checkpoint_are_an_error(tmp_path):
    torch.save(checkpoint() | {"best": {"score": Payload()}}, tmp_path / "last.pt")
    with pytest.raises(DamagedError, match="it holds _?io.open"):
        load_checkpoint(tmp_path / "last.pt")
    assert not (tmp_path / "ran").exists()


def test_every_changed_byte_of_the_data_is_an_error(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(path, checkpoint() | {"model": {"weight": torch.randn(50, 50)}})
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as file:
        entry = next(entry for entry in file.infolist() if entry.file_size == 50 * 50 * 4)
    rng = np.random.default_rng(0)
    places = rng.integers(entry.file_size, size=20) + entry.header_offset + 200
    for place in (*places, *rng.integers(entry.header_offset, size=20)):
        data = bytearray(whole)
        data[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        try:
            loaded = load_checkpoint(path)
        except DamagedError:
            continue
        path.write_bytes(whole)  # a byte of padding, or of a date
        assert torch.equal(loaded["model"]["weight"], load_checkpoint(path)["model"]["weight"])
        assert place not in places


@pytest.mark.parametrize("fraction", [0, 0.01, 0.3, 0.6, 0.9, 0.999])
def test_a_truncated_file_is_an_error(tmp_path, fraction):
    path = tmp_path / "last.pt"
    save_checkpoint(path, checkpoint() | {"model": {"weight": torch.randn(50, 50)}})
    data = path.read_bytes()
    path.write_bytes(data[: int(fraction * len(data))])
    with pytest.raises(DamagedError, match=re.escape(f"{path} is damaged")):
        load_checkpoint(path)


def test_leftovers_of_killed_writers_are_removed(tmp_path):
    mine = [".last.pt.123.tmp", ".step_7.pt.9.tmp"]
    others = [".notes.pt.9.tmp", "last.pt.123.tmp", ".last.pt.tmp", "last.pt"]
    for name in mine + others:
        (tmp_path / name).touch()
    remove_leftovers(tmp_path, re.compile(r"(last|step_\d+)\.pt"))
    assert {path.name for path in tmp_path.iterdir()} == set(others)


def write(folder, name, step, best_step):
    best = {"recall@1": best_step / 10, "step": best_step}
    save_checkpoint(folder / name, checkpoint() | {"step": step, "best": best})


@pytest.mark.parametrize(
    ("damaged", "newest"),
    [
        ([], "last.pt"),
        (["last.pt"], "step_4.pt"),
        (["last.pt", "step_4.pt"], "step_3.pt"),
        (["last.pt", "step_4.pt", "step_3.pt"], "best.pt"),
        (["last.pt", "step_4.pt", "step_3.pt", "best.pt"], None),
    ],
)
def test_a_damaged_checkpoint_is_passed_over(tmp_path, damaged, newest):
    for name, step in (("step_3.pt", 3), ("step_4.pt", 4), ("last.pt", 4), ("best.pt", 2)):
        write(tmp_path, name, step, 2)
    (tmp_path / "step_by_hand.pt").touch()
    for name in damaged:
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-30])
    found = newest_good(tmp_path)
    assert found.path == (newest and tmp_path / newest)
    assert sorted(line.partition(":")[0] for line in found.passed_over) == sorted(
        f"passed over {name}" for name in damaged
    )
    assert all("is damaged" in line for line in found.passed_over)


def test_an_empty_folder_has_no_checkpoint(tmp_path):
    assert newest_good(tmp_path).path is None and newest_good(tmp_path / "no").passed_over == []


@pytest.mark.parametrize(("known", "newest"), [(2, "best.pt"), (6, "last.pt")])
def test_best_is_the_newest_unless_last_knows_of_it(tmp_path, known, newest):
    """A run that was killed in a test, and one that went back to a step before its best."""
    write(tmp_path, "last.pt", 4, known)
    write(tmp_path, "best.pt", 6, 6)
    assert newest_good(tmp_path).path == tmp_path / newest


@pytest.mark.parametrize(
    ("keep", "step", "kept"),
    [
        (2, 10, [9, 10]),
        (0, 10, [1, 2, 9, 10]),
        (9, 10, [1, 2, 9, 10]),
        (2, 9, [2, 9]),
        (0, 2, [1, 2]),
    ],
)
def test_prune_keeps_the_newest_up_to_the_step(tmp_path, keep, step, kept):
    for number in (1, 2, 9, 10):
        (tmp_path / f"step_{number}.pt").touch()
    (tmp_path / "last.pt").touch()
    prune(tmp_path, keep, step)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"last.pt", *(f"step_{number}.pt" for number in kept)}
