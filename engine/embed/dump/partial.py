"""The unfinished work of a dump, in a folder of its own: it goes on where it was, however it ended.

plan.json       what is computed, see `Plan`
features.npy    and so on: the files of the dump, whose rows are written as they are computed
images.states   per image what is known of its file, see `fingerprint.STATE`
done.jsonl      a line per chunk of images whose rows are on the disk
done-RANK.jsonl such lines of the processes that are at work
lock            held by the one that leads them
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from metric_learning.common.atomic import sync, write_json, write_text
from metric_learning.common.fingerprint import (
    STATE,
    Snapshot,
    changed_rows,
    first_difference,
    relative_paths,
    take_snapshot,
)
from metric_learning.common.schema import read_json
from metric_learning.engine.embed.dump.layout import META, Column, Shard
from metric_learning.engine.embed.dump.plan import Plan
from metric_learning.reader import ImageSet

PLAN, STATES, DONE, LOCK = "plan.json", "images.states", "done.jsonl", "lock"
SYNC_SECONDS = 1.0  # between writes of rows to the disk, which is what a killed process loses

Broken = list[tuple[int, str, str]]  # number of an unreadable image, its path, what is wrong


class WorthlessError(ValueError):
    """What the work gives is of no use, and would be of none if it went on."""


class Partial:
    """A folder of unfinished work: that below a dump, or beside a search index."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder, self.plan = folder, plan
        self.done: dict[int, Broken] = {}  # chunk -> what of it cannot be read
        self._read: dict[str, int] = {}  # journal -> bytes that were read

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Work in the folder alone; ValueError where another command does.

        After an error the folder is removed again, unless something was done that can go on.
        """
        is_new = not self.folder.parent.exists()
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / LOCK).open("a") as lock:
            try:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError) as error:
                raise ValueError(
                    f"{self.folder}: another command is writing its features there: wait for it, "
                    "or choose another place for yours"
                ) from error

            try:
                yield
            except BaseException as error:
                if not self.has_work() or isinstance(error, WorthlessError):
                    shutil.rmtree(self.folder, ignore_errors=True)
                    if is_new:
                        with contextlib.suppress(OSError):  # of others, meanwhile
                            self.folder.parent.rmdir()
                raise

    @property
    def is_complete(self) -> bool:
        """Whether all files are whole, and only have to take their places."""
        return (self.folder / META).exists()

    def has_work(self) -> bool:
        """Whether rows are there that need not be computed again."""
        return self.is_complete or any(
            path.stat().st_size for path in self.folder.glob("done*.jsonl")
        )

    def open(self, image_set: ImageSet, may_skip: bool) -> list[int]:
        """Take up the work that is there, or begin; return the chunks that are missing.

        Chunks with images that have changed since are among them and, unless `may_skip`, those with
        unreadable ones. Raises ValueError where the work is another one.
        """
        if not self.has_work():
            self._begin()
        self._compare()
        if self.is_complete:
            return []

        self.poll()
        if not may_skip:
            self.done = {chunk: broken for chunk, broken in self.done.items() if not broken}
        states = np.memmap(self.folder / STATES, STATE, "r")
        for chunk in [*self.done]:
            if self._is_changed(image_set, self.plan.chunk(chunk), states):
                del self.done[chunk]
        lines = "".join(_line(chunk, broken) for chunk, broken in self.done.items())
        write_text(self.folder / DONE, lines)
        for journal in self.folder.glob("done-*.jsonl"):
            journal.unlink()
        self._read = {}  # others of these names begin
        return [chunk for chunk in range(self.plan.num_chunks) if chunk not in self.done]

    def _begin(self) -> None:
        """Make empty files."""
        for path in self.folder.iterdir():
            if path.name != LOCK:
                path.unlink()
        write_json(self.folder / PLAN, self.plan.facts)
        sizes = {STATES: (b"", self.plan.num_images * STATE.itemsize)}
        for column, shard in self.files():
            num_rows = shard.stop - shard.start
            sizes[shard.file(column.stem)] = column.header(num_rows), num_rows * column.row_bytes
        for name, (header, size) in sizes.items():
            with (self.folder / name).open("wb") as file:
                file.write(header)
                file.truncate(len(header) + size)
        (self.folder / DONE).touch()

    def _compare(self) -> None:
        """Raise ValueError where the work is of other weights, images and so on, or damaged."""
        remedy = f"choose another place for the output, or delete {self.folder}"
        try:
            kept = read_json(self.folder / PLAN, PLAN)
            other = first_difference(kept, dict(self.plan.facts))
        except (ValueError, AttributeError, FileNotFoundError) as error:
            raise ValueError(f"{self.folder} is damaged ({error}): {remedy}") from error
        if other is not None:
            raise ValueError(
                f"{self.folder} is unfinished work of another command, its {other}: give the flags "
                f"of that one to finish it, {remedy}"
            )

    def _is_changed(self, image_set: ImageSet, rows: range, states: np.ndarray) -> bool:
        """Whether images are others than when their rows were computed."""
        kept = states[rows.start : rows.stop]
        found = look_at(image_set, rows, kept)
        return bool(len(changed_rows(Snapshot(found.names, [], kept), found)))

    def poll(self) -> None:
        """Take note of the chunks that any process has done since."""
        for journal in self.folder.glob("done*.jsonl"):
            with contextlib.suppress(FileNotFoundError), journal.open("rb") as file:
                file.seek(self._read.get(journal.name, 0))
                text = file.read()
                text = text[: text.rfind(b"\n") + 1]  # the last line may be half written
                self._read[journal.name] = self._read.get(journal.name, 0) + len(text)
                for line in text.splitlines():
                    self._note(line, journal)

    def _note(self, line: bytes, journal: Path) -> None:
        """Read a line about a chunk that is done; ValueError where it is damaged."""
        try:
            found = json.loads(line)
            broken = [(int(row), str(path), str(error)) for row, path, error in found["broken"]]
            chunk = range(self.plan.num_chunks)[found["chunk"]]
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise ValueError(
                f"{journal} is damaged: delete {self.folder}, to begin anew"
            ) from error
        self.done[chunk] = broken

    def files(self) -> list[tuple[Column, Shard]]:
        """Return what is in which file."""
        return [(column, shard) for shard in self.plan.shards for column in self.plan.columns]

    def place(self, column: Column, shard: Shard) -> Path:
        """Return the file of a column's rows of a shard."""
        return self.folder / shard.file(column.stem)

    def read(self, column: Column, rows: range) -> np.ndarray:
        """Read the rows of images."""
        parts = [
            np.memmap(
                self.place(column, shard),
                column.dtype,
                "r",
                len(column.header(shard.stop - shard.start)) + start * column.row_bytes,
                column.shape(stop - start),
            )
            for shard, start, stop in _inside(self.plan.shards, rows)
        ]
        return np.concatenate(parts)

    def write(self, rows: range, values: Mapping[str, np.ndarray], states: np.ndarray) -> set[Path]:
        """Write the rows of images, by column; return the files that are to be synchronised."""
        written = {self.folder / STATES}
        _write_at(self.folder / STATES, rows.start * STATE.itemsize, states)
        for column in self.plan.columns:
            for shard, start, stop in _inside(self.plan.shards, rows):
                first = shard.start + start - rows.start
                part = values[column.stem][first : first + stop - start]
                assert part.dtype == column.dtype and part.shape == column.shape(stop - start)
                head = len(column.header(shard.stop - shard.start))
                file = self.place(column, shard)
                _write_at(file, head + start * column.row_bytes, part)
                written.add(file)
        return written


class Journal:
    """Notes which chunks one process has done, when their rows are on the disk."""

    def __init__(self, partial: Partial, rank: int) -> None:
        self._partial = partial
        self._file = partial.folder / f"done-{rank:05}.jsonl"
        self._lines: list[str] = []
        self._unsynced: set[Path] = set()
        self._synced_at = time.monotonic()

    def add(
        self, chunk: int, values: Mapping[str, np.ndarray], states: np.ndarray, broken: Broken
    ) -> None:
        """Write the rows of a chunk."""
        rows = self._partial.plan.chunk(chunk)
        self._unsynced |= self._partial.write(rows, values, states)
        self._lines.append(_line(chunk, broken))
        if time.monotonic() - self._synced_at > SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Put on the disk what was written so far, and note it."""
        for file in self._unsynced:
            sync(file)
        if self._lines:
            try:
                with self._file.open("a") as journal:
                    journal.write("".join(self._lines))
                    journal.flush()
                    os.fsync(journal.fileno())
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(self._file)) from error

        self._lines, self._unsynced, self._synced_at = [], set(), time.monotonic()


def look_at(image_set: ImageSet, rows: range, known: np.ndarray | None = None) -> Snapshot:
    """Take the snapshot of some images, see `take_snapshot`; `known` are states of before."""
    paths = list(image_set.paths[rows.start : rows.stop])
    images = image_set.images
    if images is not None:
        return take_snapshot(paths, images[rows.start : rows.stop])
    before = None if known is None else Snapshot(relative_paths(paths), [], known)
    return take_snapshot(paths, known=before)


def _line(chunk: int, broken: Broken) -> str:
    return json.dumps({"chunk": chunk, "broken": broken}) + "\n"


def _inside(shards: Sequence[Shard], rows: range) -> Iterator[tuple[Shard, int, int]]:
    """Yield the shards that hold some of the images, and from where to where in each."""
    size = shards[0].stop
    for shard in shards[rows.start // size : (rows.stop - 1) // size + 1]:
        start, stop = max(rows.start, shard.start), min(rows.stop, shard.stop)
        yield shard, start - shard.start, stop - shard.start


def _write_at(file: Path, place: int, values: np.ndarray) -> None:
    """Write the bytes of an array at a place of a file; a full disk is an OSError."""
    data = memoryview(values.tobytes())
    descriptor = os.open(file, os.O_WRONLY)
    try:
        while len(data):
            count = os.pwrite(descriptor, data, place)
            data, place = data[count:], place + count
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(file)) from error
    finally:
        os.close(descriptor)
