"""Features in a memory-mapped file: their extraction can be resumed, and they may exceed memory."""

from __future__ import annotations

import os
import time
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from metric_learning.common.atomic import write_atomically, write_json
from metric_learning.common.fingerprint import (
    Snapshot,
    changed_rows,
    describe_change,
    find_names,
    first_difference,
    load_snapshot,
    state_of,
)
from metric_learning.common.schema import read_json
from metric_learning.common.text_files import check_regular
from metric_learning.reader import ImageSet
from metric_learning.reader.sets.snapshots import snapshot_of

CHECKSUM = "crc32"
SYNC_SECONDS = 5.0  # between writes of rows that are computed to the disk


class FeatureFile:
    """A .npy file of features (N, D) float32 in data-set order.

    Beside FILE, FILE.json says what they are of, see `embedder.open_features`, and the checksum of
    whole ones. FILE.images says of which images, as a snapshot of their files. FILE.done, a byte
    per image, says which rows are computed, and is gone when all are.

    Attributes:
        shown: what it is called in messages; by default it is the file of --features.
        snapshot: of the images, from `prepare` on.
        notes: lines for the user about what `prepare` found.
    """

    def __init__(
        self,
        path: Path,
        about: dict[str, Any],
        image_set: ImageSet,
        embedding_size: int,
        verify: bool = False,
        shown: str | None = None,
    ) -> None:
        self.shown = shown or f"--features={path}"
        self.path, self.about, self._image_set, self._verify = path, about, image_set, verify
        self.shape = len(image_set), embedding_size
        self.about_path, self.images_path, self.done_path = (
            path.with_name(f"{path.name}.{name}") for name in ("json", "images", "done")
        )
        self.snapshot: Snapshot | None = None
        self.notes: list[str] = []

    def prepare(self) -> np.ndarray:
        """Make the file where there is none; return the rows that are not computed yet, (M,) int64.

        Those of images that have changed are among them. Raises ValueError where it is not one of
        these or of something else, OSError without room.
        """
        if not self.path.exists():
            self.snapshot = snapshot_of(self._image_set)
            self.snapshot.save(self.images_path)
            write_json(self.about_path, self.about)
            self.done_path.write_bytes(bytes(self.shape[0]))
            write_atomically(self.path, self._write_empty)
        elif not self.about_path.exists():
            raise ValueError(
                f"{self.shown} exists without {self.about_path.name}, so another program "
                "made it, and it is not replaced: choose another name"
            )
        else:
            self._compare_facts()
            self._compare_images()

        return np.flatnonzero(self._read_done() == 0)

    def _read_done(self) -> np.ndarray:
        """Return which rows are computed, (N,) uint8."""
        if not self.done_path.exists():
            return np.ones(self.shape[0], np.uint8)
        check_regular(self.done_path, self.shown)
        done = np.fromfile(self.done_path, np.uint8)
        if len(done) != self.shape[0]:
            raise ValueError(f"{self.shown} is damaged, delete it: no byte an image")
        return done

    def _compare_facts(self) -> None:
        """Raise ValueError where the features are damaged, or of other weights and so on."""
        remedy = "choose another name or delete the file"
        try:
            found = read_json(self.about_path, self.about_path.name)
            shape = self.read().shape
            if not isinstance(found, dict):
                raise ValueError(f"{self.about_path.name} holds no facts")
            checksum = found.pop(CHECKSUM, None)
            if checksum is not None and not self.done_path.exists() and checksum != self._sum():
                raise ValueError("bytes of it have changed")
        except (ValueError, EOFError) as error:
            raise ValueError(f"{self.shown} is damaged, delete it: {error}") from error
        if not self.images_path.exists():
            raise ValueError(
                f"{self.shown} was made by an earlier version, which did not record what "
                f"its images held: {remedy}"
            )

        size = {"dimensions": self.shape[1]}
        other = first_difference(found | {"dimensions": shape[-1]}, self.about | size)
        if other is not None:
            raise ValueError(f"{self.shown} holds features of other {other}: {remedy}")

    def _compare_images(self) -> None:
        """Have the rows of changed images computed again; ValueError where others are listed."""
        try:
            kept = load_snapshot(self.images_path)
            if len(kept) != len(self.read()):
                raise ValueError(f"{self.images_path.name} is of {len(kept)} images")
        except ValueError as error:
            raise ValueError(f"{self.shown} is damaged, delete it: {error}") from error
        self.snapshot = found = snapshot_of(self._image_set, kept, self._verify)
        others = find_names(kept, found)
        if others is not None:
            raise ValueError(
                f"{self.shown} holds features of other images ({others}): choose another "
                "name or delete the file"
            )

        rows = changed_rows(kept, found)
        if len(rows):
            self._mark_missing(rows)
            self.notes = [
                f"{len(rows)} of {len(found)} images have changed, and their features are computed "
                f"again; the first {describe_change(kept, found, rows[0])}"
            ]
        if len(rows) or (kept.states != found.states).any():
            found.save(self.images_path)

    def _mark_missing(self, rows: np.ndarray) -> None:
        """Note on the disk that rows are to be computed again."""
        done = self._read_done()
        done[rows] = 0
        write_atomically(self.done_path, lambda temporary: done.tofile(temporary))

    def _write_empty(self, file: Path) -> None:
        array = np.lib.format.open_memmap(file, "w+", np.float32, self.shape)
        size = file.stat().st_size
        del array
        if hasattr(os, "posix_fallocate"):  # a full disk is an error now, not a crash later
            with file.open("r+b") as opened:
                os.posix_fallocate(opened.fileno(), 0, size)

    def read(self) -> np.ndarray:
        """Map the features (N, D) into memory, for reading."""
        return np.load(self.path, mmap_mode="r")

    def _sum(self) -> int:
        """Return the CRC-32 of the file, as `checksum_of` knows it."""
        return checksum_of(self.path, state_of(str(self.path)))

    def finish(self) -> None:
        """Say that all features are computed."""
        if self.done_path.exists():
            assert np.fromfile(self.done_path, np.uint8).all()
            write_json(self.about_path, self.about | {CHECKSUM: self._sum()})
            self.done_path.unlink()


@lru_cache(maxsize=64)
def checksum_of(path: Path, state: str) -> int:
    """Return the CRC-32 of a file that is in a state, see `state_of`, for which it is read once."""
    return zlib.crc32(np.memmap(path, np.uint8, mode="r").data)


class FeatureWriter:
    """Writes `rows` (M,) int64 of a feature file, and marks them as done when they are on disk."""

    def __init__(self, file: FeatureFile, rows: np.ndarray) -> None:
        self.features = np.load(file.path, mmap_mode="r+")
        self.done = np.memmap(file.done_path, np.uint8, "r+")
        self.rows, self.num_written, self.num_synced = rows, 0, 0
        self.synced_at = time.monotonic()

    def __call__(self, features: np.ndarray) -> None:
        """Write the next features (B, D)."""
        rows = self.rows[self.num_written : self.num_written + len(features)]
        self.features[rows] = features
        self.num_written += len(features)
        if time.monotonic() - self.synced_at > SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Write to the disk what was written so far."""
        self.features.flush()
        self.done[self.rows[self.num_synced : self.num_written]] = 1
        self.done.flush()
        self.num_synced, self.synced_at = self.num_written, time.monotonic()
