"""The files of a dump: which there are, and the rows of which images each of them holds."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

FEATURES, PATHS, LABELS, META = FILES = ("features.npy", "paths.txt", "labels.txt", "meta.json")
BOXES = "boxes.txt"  # of images that are parts of photos
REPORT = "report"  # a folder that a report on the features may have been written to
PARTIAL = "partial"  # the folder of unfinished work, in that of the dump
ONE_FILE = 2**30  # bytes of features from which on there are several files of them
SHARD = re.compile(r"(?P<stem>\w+)-(?P<number>\d{5,})-of-(?P<count>\d{5,})\.npy")


class Column(NamedTuple):
    """Something that is kept of each image: a row of `width` numbers, or one where that is 0.

    Where it is not `is_published`, it is for the screen alone, and is no file of the dump.
    """

    stem: str
    dtype: np.dtype
    width: int
    is_published: bool = True

    @property
    def row_bytes(self) -> int:
        """Bytes of the row of an image."""
        return self.dtype.itemsize * max(1, self.width)

    def shape(self, num_rows: int) -> tuple[int, ...]:
        """Return the shape of the array of so many images."""
        return (num_rows, self.width) if self.width else (num_rows,)

    def header(self, num_rows: int) -> bytes:
        """Return what stands before the rows of so many images in a .npy file, as np.save does."""
        content = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            content,
            {
                "descr": np.lib.format.dtype_to_descr(self.dtype),
                "fortran_order": False,
                "shape": self.shape(num_rows),
            },
        )
        return content.getvalue()


class Shard(NamedTuple):
    """The images from number `start` to before `stop`, whose rows are in files of their own."""

    number: int
    total: int
    start: int
    stop: int

    @property
    def rows(self) -> range:
        """The numbers of the images."""
        return range(self.start, self.stop)

    def file(self, stem: str, suffix: str = ".npy") -> str:
        """Return the name of the file of a column."""
        of = f"-{self.number:05}-of-{self.total:05}" if self.total > 1 else ""
        return f"{stem}{of}{suffix}"


def pieces_of(rows: range, size: int) -> Iterator[range]:
    """Cut rows into successive ones, of at most so many each."""
    for start in range(rows.start, rows.stop, size):
        yield range(start, min(start + size, rows.stop))


def shards_of(num_images: int, shard_size: int) -> list[Shard]:
    """Cut images into shards of so many; the last one is smaller."""
    starts = range(0, num_images, shard_size)
    return [
        Shard(number, len(starts), start, min(start + shard_size, num_images))
        for number, start in enumerate(starts)
    ]


def choose_shard_size(asked: int | None, num_images: int, row_bytes: int) -> int:
    """Return how many images are in a file: all of them, unless these take ONE_FILE or more."""
    if asked is not None:
        return min(asked, num_images)
    return num_images if num_images * row_bytes < ONE_FILE else max(1, ONE_FILE // row_bytes)
