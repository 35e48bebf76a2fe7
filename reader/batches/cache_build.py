"""Build the cache of decoded training images, or wait for the process that builds it.

The size is known from the heads of the files, so a disk that is too small is an error before the
work. Every few seconds the pixels reach the disk, and then the index that says so: what is killed
at any moment is continued from there. One process builds at a time; its lock, which the kernel
gives up with the process, keeps the others waiting.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from metric_learning.common.atomic import write_atomically, write_json
from metric_learning.reader.batches.cache import (
    BROKEN,
    ENTRY,
    MISSING,
    PRESENT,
    CachedImages,
    CachedImageSet,
    CachePaths,
    checksum,
    describe,
    is_complete,
    num_bytes,
    offsets,
    read_entries,
)
from metric_learning.reader.batches.loader import check_broken
from metric_learning.reader.sets.image_set import AS_REFERENCE, Decoding, ImageError, ImageSet
from metric_learning.reader.transforms import reduce_image, resized_shape

GB = 10**9
SYNC_SECONDS = 5.0  # between writes of what is decoded to the disk

Log = Callable[[str], object]


def open_cache(
    image_set: ImageSet,
    folder: Path,
    short_side: int,
    decoding: Decoding = AS_REFERENCE,
    *,
    num_workers: int,
    on_bad_image: str,
    log: Log,
) -> CachedImageSet:
    """Return the set with its images in a cache, which is built where it is not complete.

    Images whose short side is longer, in pixels, are reduced to it, by `num_workers` threads, at
    least one. A broken image stops ("error") or is noted ("skip"); `log` receives what is built or
    waited for.

    Raises:
        ImageError: an image is broken, or too many are.
        CacheError: the cache is damaged or of something else.
        ValueError: the folder holds something else, or the images are in memory anyway.
        OSError: the disk is too small or the folder cannot be written.
    """
    if image_set.images is not None:
        raise ValueError(
            f"--cache is not used by --dataset={image_set.name}, whose images are in memory: leave "
            "it out"
        )
    about = describe(image_set, short_side, decoding.alpha)
    if not is_complete(folder, about):
        builder = _Builder(
            image_set, decoding, CachePaths(folder), about, max(1, num_workers), on_bad_image, log
        )
        with locked(folder, log):
            if not is_complete(folder, about):
                builder.build()

    cached = CachedImages(folder, about)
    broken = cached.broken()
    if on_bad_image == "error" and len(broken):
        raise ImageError(
            f"cannot read image {image_set.paths[broken[0]]} ({len(broken)} broken of "
            f"{len(image_set)} in --cache={folder}): repair the data set or give "
            "--on_bad_image=skip"
        )
    return CachedImageSet.of(image_set, cached)


@contextlib.contextmanager
def locked(folder: Path, log: Log) -> Iterator[None]:
    """Hold the lock of a cache, alone among all processes; waits for it."""
    folder.mkdir(parents=True, exist_ok=True)
    with CachePaths(folder).lock.open("a") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            log(f"cache: another process builds {folder}, waiting for it")
            fcntl.lockf(file, fcntl.LOCK_EX)
        yield


@dataclass(eq=False)
class _Builder:
    """One build of a cache, from nothing or from what an earlier one left."""

    image_set: ImageSet
    decoding: Decoding
    files: CachePaths
    about: dict[str, Any]
    num_workers: int
    on_bad_image: str
    log: Log

    def build(self) -> None:
        """Bring the cache to completion; the lock must be held."""
        files = self.files
        if not files.about.exists():
            write_json(files.about, self.about)
        with one_thread_each():
            if files.index.exists():
                self._entries = read_entries(files.folder, len(self.image_set))
            else:
                self._entries = self._plan()
                self._save_entries()

            self._reserve()
            self._fill()
        write_json(files.about, self.about | {"index": checksum(self._entries)})
        self.log(f"cache: {files.folder} is complete")

    def _plan(self) -> np.ndarray:
        """Find from the heads of all files where each image will lie, (N,) of ENTRY."""
        entries = np.zeros(len(self.image_set), ENTRY)
        with self._mapped(self._shape, range(len(entries)), "reading sizes") as shapes:
            for i, shape in enumerate(shapes):
                if isinstance(shape, ImageError):
                    self._note_broken(entries, i, shape)
                else:
                    entries["height"][i], entries["width"][i] = shape
        entries["offset"] = offsets(entries)
        return entries

    def _shape(self, i: int) -> tuple[int, int] | ImageError:
        """Height and width of image i in the cache, or its error."""
        try:
            return self._reduced(*self.image_set.read_shape(i, self.decoding))
        except ImageError as error:
            return error

    def _reduced(self, height: int, width: int) -> tuple[int, int]:
        short_side = self.about["cache_size"]
        if min(height, width) <= short_side:
            return height, width
        return resized_shape(height, width, short_side)

    def _reserve(self) -> None:
        """Say the size and take the room on the disk, all of it, so that it cannot run out."""
        path, size = self.files.pixels, num_bytes(self._entries)
        path.touch()
        if path.stat().st_size != size:  # not begun, or lost
            self._entries["state"][self._entries["state"] == PRESENT] = MISSING
        needed = size - path.stat().st_blocks * 512
        free = shutil.disk_usage(path.parent).free
        num_missing = int((self._entries["state"] == MISSING).sum())

        self.log(
            f"cache: {size / GB:.2f} GB for {len(self.image_set)} images in {path.parent}, "
            f"{free / GB:.2f} GB free; {num_missing} to decode"
        )
        too_small = OSError(
            f"--cache={path.parent} needs {size / GB:.2f} GB, {max(needed, 0) / GB:.2f} GB more "
            f"than it has, but {free / GB:.2f} GB are free: free some, or choose another folder or "
            f"a smaller --cache_size (it is {self.about['cache_size']} pixels)"
        )
        if needed > free:
            raise too_small

        os.truncate(path, size)
        if not size or not hasattr(os, "posix_fallocate"):
            return
        try:
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise too_small from error
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise

    def _fill(self) -> None:
        """Decode what is missing, and write it to the disk every few seconds."""
        missing = np.flatnonzero(self._entries["state"] == MISSING).tolist()
        synced_at = time.monotonic()
        with self.files.pixels.open("r+b", buffering=0) as file:
            self._file = file.fileno()
            try:
                with self._mapped(self._store, missing, "decoding") as outcomes:
                    for i, outcome in zip(missing, outcomes, strict=True):
                        if isinstance(outcome, ImageError):
                            self._note_broken(self._entries, i, outcome)
                        else:
                            self._entries["checksum"][i] = outcome
                            self._entries["state"][i] = PRESENT

                        if time.monotonic() - synced_at > SYNC_SECONDS:
                            self._sync()
                            synced_at = time.monotonic()
            finally:
                self._sync()

    def _store(self, i: int) -> int | ImageError:
        """Decode, reduce and write image i; its checksum or its error."""
        entry = self._entries[i]
        shape = int(entry["height"]), int(entry["width"])
        try:
            rgb = self.image_set.read_image(i, self.decoding)
            if self._reduced(*rgb.shape[:2]) != shape:
                path = self.image_set.paths[i]
                raise ImageError(f"cannot read image {path}: its size is not that of its head")
        except ImageError as error:
            return error

        pixels = np.ascontiguousarray(reduce_image(rgb, shape))
        left, offset = pixels.data.cast("B"), int(entry["offset"])
        while left:
            written = os.pwrite(self._file, left, offset)
            left, offset = left[written:], offset + written
        return checksum(pixels)

    def _note_broken(self, entries: np.ndarray, i: int, error: ImageError) -> None:
        """Mark image i as broken; ImageError where that may not be, or too many are."""
        if self.on_bad_image == "error":
            raise error
        entries["state"][i] = BROKEN
        self.log(f"cache: {error}")
        check_broken(int((entries["state"] == BROKEN).sum()), len(entries))

    def _sync(self) -> None:
        """Write to the disk first the pixels, then the index that says that they are there."""
        os.fsync(self._file)
        self._save_entries()

    def _save_entries(self) -> None:
        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:  # np.save would add a suffix to a path
                np.save(file, self._entries)

        write_atomically(self.files.index, write)

    @contextlib.contextmanager
    def _mapped(
        self, work: Callable[[int], Any], items: Sequence[int], title: str
    ) -> Iterator[Iterable[Any]]:
        """Work on threads, all done on leaving; gives results in order, under a progress bar."""
        pool = ThreadPoolExecutor(self.num_workers)
        try:
            yield tqdm(
                pool.map(work, items),
                total=len(items),
                desc=f"cache: {title}",
                unit=" images",
                disable=None,
                leave=False,
            )
        finally:
            pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def one_thread_each() -> Iterator[None]:
    """Let torch compute on one thread per thread of ours, which would compete otherwise."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
