"""Lines of a text file by their numbers, without a text per line in memory."""

from __future__ import annotations

import tempfile
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np

from metric_learning.common.names import from_line, to_line
from metric_learning.common.text_files import check_regular

LINE_END = ord("\n")
BLOCK = 2**24  # bytes that are looked through at once


class _Lines(Sequence[str]):
    """Lines that are found one by one, by `_at` of a row that there is."""

    @abstractmethod
    def _at(self, row: int) -> str: ...

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            return [self._at(number) for number in range(*row.indices(len(self)))]
        return self._at(range(len(self))[row])


class PackedLines(_Lines):
    """N lines of a file, read when they are asked for: 16 bytes each, and pages of the file.

    Bytes that are not UTF-8 stay as Python has them in file names (surrogateescape).
    """

    def __init__(self, data: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> None:
        self._data, self._starts, self._ends = data, starts, ends

    def __len__(self) -> int:
        return len(self._starts)

    def _at(self, row: int) -> str:
        line = self._data[self._starts[row] : self._ends[row]].tobytes()
        return from_line(line.removesuffix(b"\r").decode("utf-8", "surrogateescape"))

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), 4096):
            yield from self[start : start + 4096]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(self) != len(other):
            return False
        return all(ours == theirs for ours, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]


class JoinedLines(_Lines):
    """The texts of several sequences, one after the other, without a copy of them."""

    def __init__(self, parts: Sequence[Sequence[str]]) -> None:
        self._parts = [part for part in parts if len(part)]
        self._stops = np.cumsum([len(part) for part in self._parts])

    def __len__(self) -> int:
        return int(self._stops[-1]) if self._parts else 0

    def _at(self, row: int) -> str:
        place = int(np.searchsorted(self._stops, row, side="right"))
        return self._parts[place][row - int(self._stops[place])]  # from the end of the part

    def __iter__(self) -> Iterator[str]:
        for part in self._parts:
            yield from part


def spool_lines(texts: Iterable[str], what: str) -> PackedLines:
    """Write texts that are not empty to a file without a name, and map it; see `open_lines`."""
    with tempfile.NamedTemporaryFile(prefix="lines-", suffix=".txt") as file:
        for text in texts:
            file.write(to_line(text).encode("utf-8", "surrogateescape") + b"\n")
        file.flush()
        return open_lines(Path(file.name), what)


def open_lines(path: Path, what: str) -> PackedLines:
    """Map a text file, which is called `what` in messages; blank lines are left out."""
    check_regular(path, what)
    size = path.stat().st_size
    data = np.memmap(path, np.uint8, "r") if size else np.empty(0, np.uint8)
    found = [
        np.flatnonzero(data[start : start + BLOCK] == LINE_END) + start
        for start in range(0, size, BLOCK)
    ]
    ends = np.concatenate([*found, [size]]).astype(np.int64)
    starts = np.concatenate([[0], ends[:-1] + 1])
    is_blank = starts >= ends
    return PackedLines(data, starts[~is_blank], ends[~is_blank])
