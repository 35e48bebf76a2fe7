"""Lines of a text file by their numbers, without a text per line in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np

from metric_learning.common.names import from_line
from metric_learning.common.text_files import check_regular

LINE_END = ord("\n")
BLOCK = 2**24  # bytes that are looked through at once


class PackedLines(Sequence[str]):
    """N lines of a file, read when they are asked for: 8 bytes each, and pages of the file.

    Bytes that are not UTF-8 stay as Python has them in file names (surrogateescape).
    """

    def __init__(
        self, data: np.ndarray, starts: np.ndarray, read: Callable[[str], str] = from_line
    ) -> None:
        self._data, self._starts, self._read = data, starts, read

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            return [self[number] for number in range(*row.indices(len(self)))]
        row = range(len(self))[row]
        line = self._data[self._starts[row] : self._starts[row + 1]].tobytes()
        return self._read(line.removesuffix(b"\n").decode("utf-8", "surrogateescape"))

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), 4096):
            yield from self[start : start + 4096]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(self) != len(other):
            return False
        return all(ours == theirs for ours, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]


def open_lines(path: Path, what: str) -> PackedLines:
    """Map a text file, which is called `what` in messages; the last line need not be ended."""
    check_regular(path, what)
    if path.stat().st_size == 0:
        return PackedLines(np.empty(0, np.uint8), np.zeros(1, np.int64))
    data = np.memmap(path, np.uint8, "r")
    ends = [
        np.flatnonzero(data[start : start + BLOCK] == LINE_END) + start + 1
        for start in range(0, len(data), BLOCK)
    ]
    starts = np.concatenate([[0], *ends])
    if starts[-1] != len(data):
        starts = np.append(starts, len(data))
    return PackedLines(data, starts.astype(np.int64))
