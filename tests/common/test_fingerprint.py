"""Fingerprints: snapshots of images, and facts, and what is said where they differ."""

import os
import shutil

import numpy as np
import pytest
import torch

from metric_learning.common import fingerprint
from metric_learning.common.fingerprint import (
    changed_rows,
    find_changes,
    first_difference,
    read_snapshot,
    take_snapshot,
)
from metric_learning.common.places import without_latest
from metric_learning.models.weights.fingerprint import hash_tensors, hash_weights


@pytest.fixture
def files(tmp_path):
    """Paths of four files in two folders, of 5 bytes each."""
    paths = [tmp_path / "data" / name for name in ("a/1.png", "a/2.png", "b/1.png", "b/2.png")]
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"%05d" % number)
    return [str(path) for path in paths]


@pytest.fixture
def hashed(monkeypatch):
    """Paths of the files that were read."""
    found = []
    real = fingerprint._hash_file
    monkeypatch.setattr(fingerprint, "_hash_file", lambda path: [found.append(path), real(path)][1])
    return found


def replace(path, content):
    """Give a file another content and its old times, as far as a program can."""
    before = os.stat(path)
    with open(path, "wb") as file:
        file.write(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_unchanged_files_are_not_read_again(files, hashed):
    known = take_snapshot(files)
    assert sorted(hashed) == files and known.names == ["a/1.png", "a/2.png", "b/1.png", "b/2.png"]
    hashed.clear()
    again = take_snapshot(files, known=known)
    assert hashed == [] and again.digest() == known.digest()
    take_snapshot(files, known=known, verify=True)
    assert sorted(hashed) == files


def test_other_times_are_decided_by_the_content(files, hashed):
    known = take_snapshot(files)
    hashed.clear()
    os.utime(files[0])
    replace(files[2], b"other")
    found = take_snapshot(files, known=known)
    assert sorted(hashed) == [files[0], files[2]]
    assert changed_rows(known, found).tolist() == [2]
    assert find_changes(known, found) == (
        "1 of 4 replaced, the first b/1.png: other content of 5 bytes"
    )


def test_a_process_reads_a_file_once_unless_it_is_new(files, hashed, monkeypatch):
    take_snapshot(files)
    assert sorted(hashed) == files
    take_snapshot(files)
    assert sorted(hashed) == sorted(2 * files)  # so new that a later content may have their times

    monkeypatch.setattr(fingerprint, "NEW", -(10**9))
    first = take_snapshot(files)
    hashed.clear()
    assert take_snapshot(files).digest() == first.digest() and hashed == []
    replace(files[1], b"other")
    assert changed_rows(first, take_snapshot(files)).tolist() == [1] and hashed == [files[1]]
    take_snapshot(files, verify=True)
    assert sorted(hashed[1:]) == files


def test_verify_finds_what_times_hide(files):
    known = take_snapshot(files)
    replace(files[1], b"other")
    states = known.states.copy()
    states["ctime"][1] = os.stat(files[1]).st_ctime_ns  # as a clock that was set back leaves it
    known = fingerprint.Snapshot(known.names, known.labels, states)
    assert not len(changed_rows(known, take_snapshot(files, known=known)))
    found = take_snapshot(files, known=known, verify=True)
    assert changed_rows(known, found).tolist() == [1]


def test_a_data_set_may_move_as_a_whole(files, tmp_path, hashed):
    known = take_snapshot(files)
    shutil.copytree(tmp_path / "data", tmp_path / "elsewhere")
    hashed.clear()
    moved = [path.replace("/data/", "/elsewhere/") for path in files]
    found = take_snapshot(moved, known=known)
    assert find_changes(known, found) is None and found.digest() == known.digest()
    assert sorted(hashed) == moved  # copies are younger


def test_what_was_added_removed_or_relabelled_is_named(files):
    known = take_snapshot(files, labels=["a", "a", "b", "b"])
    fewer = take_snapshot(files[:3], labels=["a", "a", "b"])
    assert find_changes(known, fewer) == "1 removed, the first b/2.png"
    assert find_changes(fewer, known) == "1 added, the first b/2.png"
    other = take_snapshot(files, labels=["a", "b", "b", "b"])
    assert find_changes(known, other) == "1 of 4 relabelled, the first a/2.png: a, not b"
    assert len({known.digest(), fewer.digest(), other.digest()}) == 3
    turned = take_snapshot(files[::-1], labels=["b", "b", "a", "a"])
    assert find_changes(known, turned) == "they come in another order"
    os.remove(files[3])
    gone = take_snapshot(files, labels=known.labels, known=known)
    assert "replaced, the first b/2.png: is no longer there" in find_changes(known, gone)


def test_a_pipe_is_no_image_and_does_not_hang(files):
    os.remove(files[0])
    os.mkfifo(files[0])
    assert take_snapshot(files).states["size"].tolist() == [-1, 5, 5, 5]


def test_images_in_memory_are_known_by_their_pixels():
    images = np.zeros((3, 4, 5, 3), np.uint8)
    names = ["x:0", "x:1", "x:2"]
    known = take_snapshot(names, images)
    images[1, 0, 0, 0] = 1
    assert changed_rows(known, take_snapshot(names, images, known=known)).tolist() == [1]


def test_a_snapshot_is_kept_and_a_damaged_one_is_one_error(files, tmp_path):
    known = take_snapshot([*files, str(tmp_path / "bad\udcff.png")], labels=["ä", "b"] * 2 + ["c"])
    known.save(tmp_path / "images.npz")
    data = (tmp_path / "images.npz").read_bytes()
    found = read_snapshot(data)
    assert (found.names, found.labels) == (known.names, known.labels)
    assert (found.states == known.states).all() and found.digest() == known.digest()
    empty = take_snapshot([])
    assert read_snapshot(empty.to_bytes()).names == [] and len(empty) == 0
    for damaged in (b"", data[:-30], data[:200], b"PK\3\4"):
        with pytest.raises(ValueError, match="is damaged"):
            read_snapshot(damaged)


def test_the_first_fact_that_differs_is_named():
    facts = {"weights": "sha256:1", "decoder": 1}
    assert first_difference(facts, dict(facts)) is None
    assert str(first_difference(facts, facts | {"decoder": 2})) == "decoder (1, not 2)"
    assert str(first_difference({}, {"decoder": 2})) == "decoder (None, not 2)"
    assert str(first_difference(facts, {"weights": "sha256:1"})) == "decoder (1, not None)"


def test_weights_are_known_by_their_tensors(tmp_path):
    from safetensors.torch import save_file

    tensors = {"a": torch.randn(3, 2), "b": torch.ones(2, dtype=torch.bfloat16)}
    torch.save({"model": tensors, "step": 3}, tmp_path / "last.pt")
    save_file(tensors, tmp_path / "last.safetensors")
    expected = hash_tensors(tensors)
    assert hash_weights(tmp_path / "last.pt") == hash_weights(tmp_path / "last.safetensors")
    assert hash_weights(tmp_path / "last.pt") == expected
    assert hash_tensors(tensors | {"n.num_batches_tracked": torch.tensor(3)}) == expected
    for other in ({"a": tensors["a"].T}, {"a": tensors["a"] + 1}, {"a": tensors["a"].double()}):
        assert hash_tensors(tensors | other) != expected
    assert hash_tensors({"c": tensors["a"], "b": tensors["b"]}) != expected


def test_the_link_to_the_newest_run_is_followed(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "latest").symlink_to("run")
    assert without_latest(str(tmp_path / "latest" / "last.pt")) == str(tmp_path / "run" / "last.pt")
    for other in (str(tmp_path / "run" / "last.pt"), "latest/last.pt", "last.pt"):
        assert without_latest(other) == other
