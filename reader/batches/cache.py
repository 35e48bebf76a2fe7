"""A memory-mapped cache of decoded training images: one flat file of pixels and an index.

A folder holds one cache:

    about.json   what it is of; when it is complete, also the checksum of index.npy
    index.npy    where each image lies, its shape, its checksum and whether it is there
    pixels.bin   rows of RGB, one image after the other
    lock         held by the process that builds

Opening checks that the cache is of these images (their paths relative to their common folder and
their file sizes), of this resolution and of this form, that index.npy has its checksum and
pixels.bin its size. An image is checked against its own checksum when a process reads it for the
first time. `reader.batches.cache_build` writes it.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from metric_learning.reader.sets.image_set import (
    AS_REFERENCE,
    DECODER,
    Decoding,
    ImageError,
    ImageSet,
)

VERSION = 1
ENTRY = np.dtype(
    [
        ("offset", np.int64),
        ("height", np.int32),
        ("width", np.int32),
        ("checksum", np.uint32),  # CRC-32 of the pixels
        ("state", np.uint8),
    ]
)
MISSING, PRESENT, BROKEN = range(3)  # what `state` says


class CacheError(ImageError):
    """A cache is damaged or not of these images; the message names its folder."""


class CachePaths:
    """The files of a cache, see above."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.about, self.index = folder / "about.json", folder / "index.npy"
        self.pixels, self.lock = folder / "pixels.bin", folder / "lock"


class CachedImages:
    """The images of a complete cache in a folder, mapped into memory.

    Raises:
        CacheError: it is damaged, or a cache of something else than `about`, see `describe`.
    """

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self._folder, self._about = folder, about
        self._open()

    def _open(self) -> None:
        files = CachePaths(self._folder)
        found = read_about(self._folder, self._about)
        self._entries = read_entries(self._folder, self._about["images"])
        if found.get("index") != checksum(self._entries):
            raise CacheError(f"{damaged(self._folder)}: {files.index.name} is not what was written")
        expected = num_bytes(self._entries)
        size = files.pixels.stat().st_size if files.pixels.exists() else 0
        if size != expected:
            raise CacheError(
                f"{damaged(self._folder)}: {files.pixels.name} has {size} bytes, not {expected}"
            )
        # Copy-on-write: no write can reach the file, and torch takes the pages without a warning.
        self._pixels = np.memmap(files.pixels, np.uint8, "c") if size else np.empty(0, np.uint8)
        self._is_checked = np.zeros(len(self._entries), bool)

    def __getstate__(self) -> dict[str, Any]:
        return {"_folder": self._folder, "_about": self._about}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open()  # a map is not sent to workers, they open it

    def broken(self) -> np.ndarray:
        """Numbers of the images that were broken when the cache was built."""
        return np.flatnonzero(self._entries["state"] == BROKEN)

    def read(self, i: int) -> np.ndarray | None:
        """Return image i, (H, W, 3) uint8 in the map; None of a broken one; or CacheError."""
        entry = self._entries[i]
        if entry["state"] == BROKEN:
            return None
        start, shape = int(entry["offset"]), (int(entry["height"]), int(entry["width"]), 3)
        pixels = self._pixels[start : start + shape[0] * shape[1] * 3]
        if not self._is_checked[i]:
            if checksum(pixels) != entry["checksum"]:
                raise CacheError(f"{damaged(self._folder)}: image {i} is not what was written")
            self._is_checked[i] = True
        return pixels.reshape(shape)


@dataclass(frozen=True, eq=False)
class CachedImageSet(ImageSet):
    """An image set whose images come from a cache, in the order of the set."""

    cached: CachedImages | None = None

    @classmethod
    def of(cls, image_set: ImageSet, cached: CachedImages) -> CachedImageSet:
        """Return the set with the images of a cache."""
        values = {field.name: getattr(image_set, field.name) for field in fields(image_set)}
        return cls(**values, cached=cached)

    def read_image(self, i: int, decoding: Decoding = AS_REFERENCE) -> np.ndarray:
        """Return image i as it is in the cache, (H, W, 3) uint8; ImageError if it was broken.

        It was decoded when the cache was built, as about.json says.
        """
        assert self.cached is not None
        rgb = self.cached.read(i)
        if rgb is None:
            raise ImageError(
                f"cannot read image {self.paths[i]}: it was broken when the cache was built"
            )
        return rgb


def describe(image_set: ImageSet, short_side: int, alpha: str) -> dict[str, Any]:
    """Return what a cache of these images depends on, as about.json says it."""
    names = relative_paths(image_set.paths)
    sizes = map(_file_size, image_set.paths)
    lines = "\n".join(f"{name} {size}" for name, size in zip(names, sizes, strict=True))
    return {
        "version": VERSION,
        "dataset": image_set.name,
        "split": image_set.split,
        "cache_size": short_side,
        "decoder": DECODER,
        "alpha": alpha,
        "images": len(image_set),
        "files": f"sha256:{sha256(lines.encode(errors='surrogateescape')).hexdigest()}",
    }


def _file_size(path: str) -> int:
    """Bytes of a file; -1 where there is none."""
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def relative_paths(paths: Sequence[str]) -> list[str]:
    """Return the paths relative to their common folder, so that the data set may move."""
    common = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])
    start = len(os.path.join(common, ""))
    return [os.path.abspath(path)[start:] for path in paths]


def is_complete(folder: Path, about: dict[str, Any]) -> bool:
    """Whether the cache is there whole, so that neither lock nor right to write is needed.

    Raises:
        CacheError: the folder holds a damaged cache, or one of something else.
        ValueError: it holds something else.
    """
    if not folder.exists():
        return False
    if CachePaths(folder).about.exists():
        return "index" in read_about(folder, about)
    lock = CachePaths(folder).lock.name
    if any(path.name != lock and not path.name.startswith(".") for path in folder.iterdir()):
        raise ValueError(
            f"--cache={folder} holds something that is no cache: choose an empty or new folder"
        )
    return False


def read_about(folder: Path, about: dict[str, Any]) -> dict[str, Any]:
    """Read about.json, which must say what `about` says; CacheError if it does not."""
    try:
        found = json.loads(CachePaths(folder).about.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CacheError(f"{damaged(folder)}: about.json cannot be read") from error
    for name, value in about.items():
        there = found.get(name) if isinstance(found, dict) else None
        if there != value:
            raise CacheError(
                f"--cache={folder} is a cache of other {name} ({there}, not {value}): choose "
                "another folder, or delete this one to build it anew"
            )
    return found


def read_entries(folder: Path, num_images: int) -> np.ndarray:
    """Read index.npy, (N,) of ENTRY; CacheError if it is damaged."""
    try:
        entries = np.load(CachePaths(folder).index)
    except (OSError, ValueError, EOFError) as error:
        raise CacheError(f"{damaged(folder)}: index.npy cannot be read") from error
    if entries.dtype != ENTRY or entries.shape != (num_images,):
        raise CacheError(f"{damaged(folder)}: index.npy is not of {num_images} images")
    if not np.array_equal(entries["offset"], offsets(entries)):
        raise CacheError(f"{damaged(folder)}: index.npy contradicts itself")
    return entries


def damaged(folder: Path) -> str:
    """Begin the error message of a damaged cache."""
    return f"--cache={folder} is damaged (delete the folder to build it anew)"


def checksum(array: np.ndarray) -> int:
    """CRC-32 of the bytes of a contiguous array."""
    return zlib.crc32(array.view(np.uint8).data)


def num_bytes(entries: np.ndarray) -> int:
    """Size of the pixels of all images."""
    return int(_sizes(entries).sum())


def offsets(entries: np.ndarray) -> np.ndarray:
    """Where the pixels of each image begin, (N,) int64: one image lies behind the other."""
    sizes = _sizes(entries)
    return np.cumsum(sizes) - sizes


def _sizes(entries: np.ndarray) -> np.ndarray:
    return entries["height"].astype(np.int64) * entries["width"] * 3
