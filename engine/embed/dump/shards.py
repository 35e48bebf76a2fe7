"""The features of a dump as one array, in however many files they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metric_learning.common.arrays import map_array, open_array
from metric_learning.common.fingerprint import Snapshot
from metric_learning.engine.embed.dump.layout import FEATURES, META, PARTIAL, SHARD

QUANTISED = np.int8


class ShardedFeatures:
    """Features (N, D) in files that are mapped into memory; rows are read when asked for.

    It is indexed by a number, a slice, or an array of numbers or of truth values, and what comes
    back is an array in memory; `np.asarray` reads all. Quantised features come back as float32,
    multiplied by the scale of their row. Of the rows of the files, `chosen` (N,) int64 may be some.
    """

    ndim = 2

    def __init__(
        self,
        parts: Sequence[np.ndarray],
        scales: Sequence[np.ndarray] | None,
        chosen: np.ndarray | None = None,
    ) -> None:
        self._parts, self._scales, self._chosen = list(parts), scales, chosen
        self._stops = np.cumsum([len(part) for part in parts])
        num_rows = int(self._stops[-1]) if chosen is None else len(chosen)
        self.shape = num_rows, parts[0].shape[1]
        self.dtype = np.dtype(np.float32) if scales is not None else parts[0].dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        if isinstance(rows, tuple):
            rest = (slice(None), *rows[1:])
            return np.asarray(self[rows[0]][rest])
        numbers = np.arange(len(self))[rows]
        if numbers.ndim == 0:
            return np.asarray(self._read(numbers[None])[0])
        return self._read(numbers)

    def _read(self, numbers: np.ndarray) -> np.ndarray:
        """Read the rows of these numbers (M,), which are at least 0."""
        if self._chosen is not None:
            numbers = self._chosen[numbers]
        found = np.empty((len(numbers), self.shape[1]), self.dtype)
        places = np.searchsorted(self._stops, numbers, side="right")
        for place in np.unique(places):
            is_here = places == place
            inside = numbers[is_here] - (self._stops[place] - len(self._parts[place]))
            rows = self._parts[place][inside]
            if self._scales is not None:
                rows = rows.astype(np.float32) * self._scales[place][inside][:, None]
            found[is_here] = rows
        return found

    def __iter__(self) -> Iterator[np.ndarray]:
        for start in range(0, len(self), 1024):
            yield from self[start : start + 1024]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("features in several files are one array only as a copy")
        return self[:].astype(dtype or self.dtype, copy=False)


class Given(NamedTuple):
    """The features of a dump.

    Attributes:
        embeddings: (M, D) of the M readable images in the order of their set, mapped from files.
        broken: path -> error of the other images.
        has_unit_length: whether the dump was normalised.
        snapshot: of all images; None but in the first process.
    """

    embeddings: np.ndarray | ShardedFeatures
    broken: dict[str, str]
    has_unit_length: bool
    snapshot: Snapshot | None


def refuse_incomplete(folder: Path) -> None:
    """Raise ValueError where the work on a dump was broken off."""
    if (folder / PARTIAL).is_dir() and not (folder / META).exists():
        raise ValueError(
            f"{folder} holds an unfinished dump, without {META}: run the same infer.py command "
            "again, which goes on with it"
        )


def open_embeddings(folder: Path, meta: Mapping[str, Any]) -> np.ndarray | ShardedFeatures:
    """Map the features of a dump, see `ShardedFeatures`; ValueError where they are damaged."""
    names = [FEATURES]
    if not (folder / FEATURES).exists() and "shards" in meta:
        names = [name for name, _ in meta["shards"]]
    parts = [map_array(folder / name, name) for name in names]
    is_quantised = parts[0].dtype == QUANTISED
    if not is_quantised:
        parts = [open_array(folder / name, name) for name in names]
    if len(parts) == 1 and not is_quantised:
        return parts[0]

    if any(part.ndim != 2 or part.shape[1:] != parts[0].shape[1:] for part in parts):
        raise ValueError(f"{names[0]} is damaged: its files are of different dimensions")
    scales = None
    if is_quantised:
        files = [name.replace("features", "scales", 1) for name in names]
        scales = [map_array(folder / name, name) for name in files]
        if [scale.shape for scale in scales] != [(len(part),) for part in parts]:
            raise ValueError("scales.npy is damaged: expected a scale per row")
    return ShardedFeatures(parts, scales)


def is_shard_table(value: Any) -> bool:
    """Whether meta.json names files of features and their numbers of rows."""
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(
            isinstance(entry, list)
            and len(entry) == 2
            and isinstance(entry[0], str)
            and SHARD.fullmatch(entry[0]) is not None
            for entry in value
        )
    )
