"""A memory-mapped cache of decoded training images: one flat file of pixels and an index.

A folder holds one cache:

    about.json   what it is of; when it is complete, also the checksum of index.npy
    images.npz   the snapshot of the images by which changed ones are recognised
    index.npy    where each image lies, its shape, its checksum and whether it is there
    pixels.bin   rows of RGB, one image after the other; those of changed images come last
    lock         held by the process that builds

Opening checks that the cache is of these images, of this resolution and of this form, that
index.npy has its checksum and pixels.bin its size. An image is checked against its own checksum
when a process reads it for the first time. `reader.batches.cache_build` writes it, and decodes
again those images that have changed.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from metric_learning.common.arrays import map_array
from metric_learning.common.fingerprint import (
    Snapshot,
    changed_rows,
    find_names,
    first_difference,
    load_snapshot,
)
from metric_learning.common.schema import read_json
from metric_learning.reader.sets.image_set import (
    AS_REFERENCE,
    DECODER,
    Decoding,
    ImageError,
    ImageSet,
)

VERSION = 2  # 1 knew the images by their paths and sizes alone
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
        self.images = folder / "images.npz"
        self.pixels, self.lock = folder / "pixels.bin", folder / "lock"


class CachedImages:
    """The images of a complete cache in a folder, mapped into memory.

    Raises:
        CacheError: it is damaged, or a cache of something else than `about`, see `describe`.
    """

    def __init__(self, folder: Path, about: dict[str, Any], num_images: int) -> None:
        self._folder, self._about, self._num_images = folder, about, num_images
        self._open()

    def _open(self) -> None:
        files = CachePaths(self._folder)
        found = read_about(self._folder, self._about)
        self._entries = read_entries(self._folder, self._num_images)
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
        return {name: vars(self)[name] for name in ("_folder", "_about", "_num_images")}

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
    """Return what a cache depends on beside its images, as about.json says it."""
    return {
        "version": VERSION,
        "decoder": DECODER,
        "dataset": image_set.name,
        "split": image_set.split,
        "cache_size": short_side,
        "alpha": alpha,
    }


def kept_images(folder: Path, about: dict[str, Any]) -> Snapshot | None:
    """Return the images that a cache was made of; None where none was begun.

    Raises:
        CacheError: the folder holds a damaged cache, or one of something else than `about`.
        ValueError: it holds something else.
    """
    if not folder.exists():
        return None
    files = CachePaths(folder)
    if not files.about.exists():
        own = files.lock.name
        if any(path.name != own and not path.name.startswith(".") for path in folder.iterdir()):
            raise ValueError(
                f"--cache={folder} holds something that is no cache: choose an empty or new folder"
            )
        return None

    is_planned = files.index.exists() and files.images.exists()
    if "index" not in read_about(folder, about) and not is_planned:
        return None
    try:
        return load_snapshot(files.images)
    except (OSError, ValueError) as error:
        raise CacheError(f"{damaged(folder)}: images.npz cannot be read") from error


def is_complete(folder: Path, about: dict[str, Any], found: Snapshot) -> bool:
    """Whether the cache of the images found is there whole, so that nothing has to be decoded.

    Raises what `kept_images` does, and CacheError for a cache of others.
    """
    kept = kept_images(folder, about)
    if kept is None:
        return False
    others = find_names(kept, found)
    if others is not None:
        raise CacheError(
            f"--cache={folder} is a cache of other images ({others}): choose another folder, or "
            "delete this one to build it anew"
        )
    return "index" in read_about(folder, about) and not len(changed_rows(kept, found))


def read_about(folder: Path, about: dict[str, Any]) -> dict[str, Any]:
    """Read about.json, which must say what `about` says; CacheError if it does not."""
    try:
        found = read_json(CachePaths(folder).about, "about.json")
    except (OSError, ValueError) as error:
        raise CacheError(f"{damaged(folder)}: about.json cannot be read") from error
    there = found if isinstance(found, dict) else {}
    other = first_difference({name: there.get(name) for name in about}, about)
    if other is not None:
        raise CacheError(
            f"--cache={folder} is a cache of other {other}: choose another folder, or delete this "
            "one to build it anew"
        )
    return there


def read_entries(folder: Path, num_images: int) -> np.ndarray:
    """Read index.npy, (N,) of ENTRY; CacheError if it is damaged."""
    try:
        entries = np.array(map_array(CachePaths(folder).index, "index.npy"))
    except (OSError, ValueError) as error:
        raise CacheError(f"{damaged(folder)}: index.npy cannot be read") from error
    if entries.dtype != ENTRY or entries.shape != (num_images,):
        raise CacheError(f"{damaged(folder)}: index.npy is not of {num_images} images")
    if overlap(entries):
        raise CacheError(f"{damaged(folder)}: index.npy contradicts itself")
    return entries


def overlap(entries: np.ndarray) -> bool:
    """Whether the pixels of two images share a place, or an image has a size below 0."""
    sizes = _sizes(entries)
    order = np.argsort(entries["offset"], kind="stable")
    order = order[sizes[order] != 0]
    starts, ends = entries["offset"][order], (entries["offset"] + sizes)[order]
    is_wrong = (entries["height"] < 0).any() or (entries["width"] < 0).any() or (starts < 0).any()
    return bool(is_wrong or (ends[:-1] > starts[1:]).any())


def damaged(folder: Path) -> str:
    """Begin the error message of a damaged cache."""
    return f"--cache={folder} is damaged (delete the folder to build it anew)"


def checksum(array: np.ndarray) -> int:
    """CRC-32 of the bytes of a contiguous array."""
    return zlib.crc32(array.view(np.uint8).data)


def num_bytes(entries: np.ndarray) -> int:
    """Size of the file that the pixels of these images lie in, up to the last of them."""
    return int((entries["offset"] + _sizes(entries)).max(initial=0))


def place(entries: np.ndarray, rows: np.ndarray) -> None:
    """Give images of certain rows their places, one behind the other and behind all others."""
    entries["offset"][rows] = 0
    others = np.delete(entries, rows)
    sizes = _sizes(entries[rows])
    entries["offset"][rows] = num_bytes(others) + np.cumsum(sizes) - sizes


def _sizes(entries: np.ndarray) -> np.ndarray:
    return np.asarray(entries["height"].astype(np.int64) * entries["width"] * 3)
