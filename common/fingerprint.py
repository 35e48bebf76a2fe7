"""What kept things depend on, so that none of them is trusted by its name.

Features, decoded images, search indexes, runs and results are of certain weights, of a way to make
inputs of images, and of images. Facts about the first two are compared as text; images are compared
by a snapshot of their files. All that is kept records both, and whoever takes it up compares them.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import time
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from metric_learning.common.archives import find_member, read_member
from metric_learning.common.atomic import write_atomically
from metric_learning.common.text_files import check_regular

DIGEST_BYTES = 16
STATE = np.dtype(
    [
        ("size", np.int64),  # bytes; -1 where there is no such file
        ("mtime", np.int64),  # of the content, in ns; 0 of images in memory
        ("ctime", np.int64),  # of content, name or rights, in ns
        ("digest", np.uint8, DIGEST_BYTES),  # of the content, SHA-256 cut short
    ]
)
TIMES = ["size", "mtime", "ctime"]
THREADS, FILES_AT_ONCE = 8, 64
LEAST_SHOWN = 100  # times as many files, from which on a bar shows how far their reading is
# Digests of files that this process has read, by path and TIMES: a run that follows another one in
# it need not read their images again. Not of files so new, in ns, that the clock may stand still
# between two of their contents.
MOST_SEEN, NEW = 100_000, 2 * 10**9
_SEEN: dict[tuple[str, ...], np.ndarray] = {}


class Difference(NamedTuple):
    """A fact that is another one than it was."""

    name: str
    kept: Any
    found: Any

    def __str__(self) -> str:
        return f"{self.name} ({self.kept}, not {self.found})"


def first_difference(kept: Mapping[str, Any], found: Mapping[str, Any]) -> Difference | None:
    """Return the first fact in which what was kept differs from what is found, or None."""
    for name in {**found, **kept}:
        if kept.get(name) != found.get(name):
            return Difference(name, kept.get(name), found.get(name))
    return None


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Images as they are at one moment, in data-set order.

    Attributes:
        names: N paths relative to their common folder, so that a data set may move as a whole.
        labels: N names of their classes; empty where these do not matter.
        states: (N,) of STATE.
    """

    names: list[str]
    labels: list[str]
    states: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def digest(self) -> str:
        """Identify names, labels and contents, whatever the times of the files."""
        return digest_of(len(self), self.names, self.labels, [self.states["digest"].tobytes()])

    def select(self, rows: np.ndarray) -> Snapshot:
        """Return the snapshot of some images in files, `rows` (M,) int64."""
        names = relative_paths([self.names[row] for row in rows.tolist()])
        labels = [self.labels[row] for row in rows.tolist()] if self.labels else []
        return Snapshot(names, labels, self.states[rows])

    def to_bytes(self) -> bytes:
        """Return all of it as the bytes of an .npz file, see `read_snapshot`."""
        names, labels = (
            np.frombuffer(_joined(texts), np.uint8) for texts in (self.names, self.labels)
        )
        file = io.BytesIO()
        np.savez(file, states=self.states, names=names, labels=labels)
        return file.getvalue()

    def save(self, path: Path) -> None:
        """Write it to a file, atomically."""
        data = self.to_bytes()
        write_atomically(path, lambda temporary: temporary.write_bytes(data))


def digest_of(
    num_images: int, names: Iterable[str], labels: Iterable[str], digests: Iterable[bytes]
) -> str:
    """Identify images as `Snapshot.digest` does, one after the other: there may be many."""
    digest = hashlib.sha256()
    for texts in (names, labels):
        for number, text in enumerate(texts):
            digest.update(f"{chr(0) * bool(number)}{text}".encode("utf-8", "surrogateescape"))
        digest.update(b"\0\0")
    for part in digests:
        digest.update(part)
    return f"{num_images} images, sha256:{digest.hexdigest()[:32]}"


def load_snapshot(path: Path) -> Snapshot:
    """Read a file of `Snapshot.save`; ValueError where it is damaged, OSError where it cannot."""
    check_regular(path, str(path))
    return read_snapshot(path.read_bytes())


def read_snapshot(data: bytes) -> Snapshot:
    """Read what `Snapshot.to_bytes` gave; ValueError where it is damaged or something else."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            if any(info.compress_type != zipfile.ZIP_STORED for info in arrays.zip.infolist()):
                raise ValueError("its parts are compressed")
            states = arrays["states"]
            names, labels = (
                arrays[name].tobytes().decode("utf-8", "surrogateescape").split("\0")
                if arrays[name].size
                else []
                for name in ("names", "labels")
            )
    except Exception as error:  # a damaged file can raise anything
        raise ValueError("the record of its images is damaged") from error

    if states.dtype != STATE or states.shape != (len(names),):
        raise ValueError("the record of its images is damaged")
    if len(labels) not in (0, len(names)):
        raise ValueError("the record of its images is damaged")
    return Snapshot(names, labels, states)


def _joined(texts: Iterable[str]) -> bytes:
    return "\0".join(texts).encode("utf-8", "surrogateescape")


def take_snapshot(
    paths: Sequence[str],
    images: Sequence[np.ndarray] | np.ndarray | None = None,
    labels: Sequence[str] = (),
    known: Snapshot | None = None,
    verify: bool = False,
) -> Snapshot:
    """Look at images: their sizes and times, and their contents where these may be others.

    The content of a file whose size and times are those of a `known` snapshot, or those with which
    this process has read it, is not read again, unless asked to `verify`. Of 120,000 files of
    25 kB, unchanged ones take half a second on one core, and new ones five seconds where the system
    still has them in memory.

    Args:
        paths: N files, or names of `images`.
        images: N times (H, W, 3) uint8 in memory, instead of files.
        labels: N names of their classes, or none.
        known: an earlier snapshot.
        verify: read every file.
    """
    states = np.zeros(len(paths), STATE)
    if images is not None:
        states["size"] = [image.nbytes for image in images]
        for row, image in enumerate(images):
            states["digest"][row] = _digest(b"%d %d " % image.shape[:2], image.tobytes())
        return Snapshot(list(paths), list(labels), states)

    names = relative_paths(paths)
    found = np.array([_times(path) for path in paths], np.int64).reshape(-1, len(TIMES))
    for name, values in zip(TIMES, found.T, strict=True):
        states[name] = values
    is_known = np.zeros(len(paths), bool)
    if known is not None and not verify:
        is_known = _copy_known(states, names, known)
    _read_contents(states, paths, np.flatnonzero(~is_known & (states["size"] >= 0)), verify)
    return Snapshot(names, list(labels), states)


def _times(path: str) -> tuple[int, int, int]:
    """Return size and times of a file; -1 and zeros where there is no regular file.

    The times of a file in an archive are those of the archive.
    """
    try:
        found = os.stat(path)
    except NotADirectoryError:
        return _times_in_archive(path)
    except OSError:
        return -1, 0, 0
    if not stat.S_ISREG(found.st_mode):
        return -1, 0, 0
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _times_in_archive(path: str) -> tuple[int, int, int]:
    try:
        member = find_member(path)
    except (OSError, ValueError):
        return -1, 0, 0
    if member is None:
        return -1, 0, 0
    return (member.size, *_times(member.archive)[1:])


def state_of(path: str) -> str:
    """Return size and times of a file as a text, which tells whether it may be another one."""
    return " ".join(map(str, _times(path)))


def _copy_known(states: np.ndarray, names: Sequence[str], known: Snapshot) -> np.ndarray:
    """Copy the digests of files whose size and times are as they were; return which, (N,) bool."""
    row_of = {name: row for row, name in enumerate(known.names)}
    rows = np.array([row_of.get(name, -1) for name in names], np.int64)
    if not len(known):
        return rows >= 0
    before = known.states[rows]
    is_same = (rows >= 0) & (before[TIMES] == states[TIMES])
    states["digest"][is_same] = before["digest"][is_same]
    return np.asarray(is_same)


def _read_contents(
    states: np.ndarray, paths: Sequence[str], rows: np.ndarray, verify: bool
) -> None:
    """Fill in the digests of files, by their rows (M,); those that were seen are not read again."""
    keys = {row: (paths[row], *map(str, states[TIMES][row].tolist())) for row in rows.tolist()}
    unseen = [row for row, key in keys.items() if verify or key not in _SEEN]
    for row in keys.keys() - set(unseen):
        states["digest"][row] = _SEEN[keys[row]]

    states["digest"][unseen] = _hash_files([paths[row] for row in unseen])
    latest = time.time_ns() - NEW
    for row in unseen:
        if len(_SEEN) < MOST_SEEN and max(states["mtime"][row], states["ctime"][row]) < latest:
            _SEEN[keys[row]] = states["digest"][row].copy()


def _hash_files(paths: Sequence[str]) -> np.ndarray:
    """Read files and return the digests of their contents, (N, DIGEST_BYTES) uint8."""
    digests = np.zeros((len(paths), DIGEST_BYTES), np.uint8)
    starts = range(0, len(paths), FILES_AT_ONCE)
    chunks = [paths[start : start + FILES_AT_ONCE] for start in starts]
    bar = partial(tqdm, total=len(chunks), desc="looking at images", leave=False)
    is_hidden = len(chunks) < LEAST_SHOWN or None  # None: shown on a terminal
    with ThreadPoolExecutor(THREADS) as pool:
        hashed = bar(pool.map(_hash_some, chunks), disable=is_hidden)
        for start, found in zip(starts, hashed, strict=True):
            digests[start : start + len(found)] = found
    return digests


def _hash_some(paths: Sequence[str]) -> list[np.ndarray]:
    return [_hash_file(path) for path in paths]


def _hash_file(path: str) -> np.ndarray:
    """Return the digest of a file; zeros where it cannot be read, which who decodes it will say."""
    try:
        if not os.path.isfile(path):  # a pipe would keep its reader waiting
            member = find_member(path)
            return (
                np.zeros(DIGEST_BYTES, np.uint8) if member is None else _digest(read_member(member))
            )
        with open(path, "rb") as file:
            return _digest(file.read())
    except (OSError, ValueError):
        return np.zeros(DIGEST_BYTES, np.uint8)


def _digest(*parts: bytes) -> np.ndarray:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return np.frombuffer(digest.digest()[:DIGEST_BYTES], np.uint8)


def relative_paths(paths: Sequence[str]) -> list[str]:
    """Return the paths relative to their common folder."""
    return list(relative_names(paths))


def relative_names(paths: Sequence[str]) -> Iterator[str]:
    """Yield the paths relative to their common folder, without keeping them."""
    places: dict[str, str] = {}
    for path in paths:
        folder = os.path.split(path)[0]
        if folder not in places:
            places[folder] = os.path.abspath(folder)
    start = len(os.path.join(os.path.commonpath(places.values()), "")) if places else 0
    inside = {folder: os.path.join(place, "")[start:] for folder, place in places.items()}
    for path in paths:
        folder, name = os.path.split(path)
        yield inside[folder] + name


def changed_rows(kept: Snapshot, found: Snapshot) -> np.ndarray:
    """Return the rows whose contents differ, (M,) int64, of two snapshots of the same names."""
    differs = (kept.states["digest"] != found.states["digest"]).any(1)
    return np.flatnonzero(differs | (kept.states["size"] != found.states["size"]))


def describe_change(kept: Snapshot, found: Snapshot, row: int) -> str:
    """Say of one image how its content differs."""
    before, now = (int(snapshot.states["size"][row]) for snapshot in (kept, found))
    if now < 0:
        return f"{found.names[row]}: is no longer there"
    size = f"{before} bytes, not {now}" if before != now else f"other content of {now} bytes"
    return f"{found.names[row]}: {size}"


def find_names(kept: Snapshot, found: Snapshot) -> str | None:
    """Say which images were added or removed, or that their order differs; None where none did."""
    if kept.names == found.names:
        return None
    before, now = set(kept.names), set(found.names)
    added = [name for name in found.names if name not in before]
    removed = [name for name in kept.names if name not in now]
    parts = [
        f"{len(names)} {what}, the first {names[0]}"
        for names, what in ((added, "added"), (removed, "removed"))
        if names
    ]
    return "; ".join(parts) or "they come in another order"


def find_changes(kept: Snapshot, found: Snapshot) -> str | None:
    """Say how images differ from those that were kept: which, what is in them, their classes."""
    names = find_names(kept, found)
    if names is not None:
        return names

    parts = []
    rows = changed_rows(kept, found)
    if len(rows):
        first = describe_change(kept, found, rows[0])
        parts.append(f"{len(rows)} of {len(found)} replaced, the first {first}")
    labels = zip(kept.labels, found.labels, strict=True) if kept.labels and found.labels else ()
    others = [row for row, (before, now) in enumerate(labels) if before != now]
    if others:
        row = others[0]
        first = f"{found.names[row]}: {kept.labels[row]}, not {found.labels[row]}"
        parts.append(f"{len(others)} of {len(found)} relabelled, the first {first}")
    return "; ".join(parts) or None
