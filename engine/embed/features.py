"""Features in a memory-mapped file: their extraction can be resumed, and they may exceed memory."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from metric_learning.common.atomic import write_atomically, write_json

SYNC_SECONDS = 5.0  # between writes of rows that are computed to the disk


class FeatureFile:
    """A .npy file of features (N, D) float32 in data-set order.

    FILE.json says what they are of, see `embedder.open_features`; FILE.done, a byte per image,
    which rows are computed, and is gone when all are.
    """

    def __init__(self, path: Path, about: dict[str, Any], shape: tuple[int, int]) -> None:
        self.path, self.about, self.shape = path, about, shape
        self.about_path = path.with_name(f"{path.name}.json")
        self.done_path = path.with_name(f"{path.name}.done")

    def prepare(self) -> np.ndarray:
        """Make the file where there is none; return the rows that are not computed yet, (M,) int64.

        Raises ValueError where it is not one of these or of something else, OSError without room.
        """
        if not self.path.exists():
            write_json(self.about_path, self.about)
            self.done_path.write_bytes(bytes(self.shape[0]))
            write_atomically(self.path, self._write_empty)
        elif not self.about_path.exists():
            raise ValueError(
                f"--features={self.path} exists without {self.about_path.name}, so another program "
                "made it, and it is not replaced: choose another name"
            )

        try:
            found = json.loads(self.about_path.read_text("utf-8"))
            shape = self.read().shape
        except (ValueError, EOFError) as error:
            raise ValueError(f"--features={self.path} is damaged, delete it: {error}") from error
        for name, value in {**self.about, "shape": self.shape}.items():
            there = shape if name == "shape" else found.get(name)
            if there != value:
                raise ValueError(
                    f"--features={self.path} holds features of other {name} ({there}, not {value}):"
                    " choose another name or delete the file"
                )

        if not self.done_path.exists():
            return np.empty(0, np.int64)
        return np.flatnonzero(np.fromfile(self.done_path, np.uint8) == 0)

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

    def finish(self) -> None:
        """Say that all features are computed."""
        if self.done_path.exists():
            assert np.fromfile(self.done_path, np.uint8).all()
            self.done_path.unlink()


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
