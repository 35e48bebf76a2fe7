"""Build the cache of decoded training images, or wait for the process that builds it.

The size is known from the heads of the files, so a disk that is too small is an error before the
work. Every few seconds the pixels reach the disk, and then the index that says so: what is killed
at any moment is continued from there. Images that have changed since are decoded again. One process
builds at a time; its lock, which the kernel gives up with the process, keeps the others waiting.
"""

from __future__ import annotations

import contextlib
import errno
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
from metric_learning.common.fingerprint import Snapshot, changed_rows, describe_change
from metric_learning.common.locks import locked
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
    kept_images,
    num_bytes,
    place,
    read_entries,
)
from metric_learning.reader.batches.loader import check_broken
from metric_learning.reader.sets.image_set import AS_REFERENCE, Decoding, ImageError, ImageSet
from metric_learning.reader.sets.snapshots import snapshot_of
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
    verify: bool = False,
) -> CachedImageSet:
    """Return the set with its images in a cache, which is built where it is not complete.

    Images whose short side is longer, in pixels, are reduced to it, by `num_workers` threads, at
    least one. A broken image stops ("error") or is noted ("skip"); `log` receives what is built or
    waited for. Changed images are recognised by their sizes and times, or to `verify` by what they
    hold, and decoded again.

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
    snapshot = _take_snapshot(image_set, folder, about, verify)
    if not is_complete(folder, about, snapshot):
        builder = _Builder(
            image_set=image_set,
            decoding=decoding,
            files=CachePaths(folder),
            about=about,
            snapshot=snapshot,
            num_workers=max(1, num_workers),
            on_bad_image=on_bad_image,
            log=log,
        )
        with locked(builder.files.lock, log, f"cache: another process builds {folder}"):
            if not is_complete(folder, about, snapshot):
                builder.build()

    cached = CachedImages(folder, about, len(image_set))
    if on_bad_image == "error":
        _refuse_broken(cached.broken(), image_set, folder)
    return CachedImageSet.of(image_set, cached)


def _refuse_broken(broken: np.ndarray, image_set: ImageSet, folder: Path) -> None:
    """Raise ImageError where a cache has images, by their numbers, that are broken."""
    if len(broken):
        raise ImageError(
            f"cannot read image {image_set.paths[broken[0]]} ({len(broken)} broken of "
            f"{len(image_set)} in --cache={folder}): repair the data set or give "
            "--on_bad_image=skip"
        )


def _take_snapshot(
    image_set: ImageSet, folder: Path, about: dict[str, Any], verify: bool
) -> Snapshot:
    """Look at the images; where only their times are other than a complete cache says, note them.

    Raises what `kept_images` does.
    """
    kept = kept_images(folder, about)
    snapshot = snapshot_of(image_set, kept, verify)
    is_whole = kept is not None and is_complete(folder, about, snapshot)
    if kept is not None and is_whole and (kept.states != snapshot.states).any():
        with contextlib.suppress(OSError):  # of a cache that can be read only
            snapshot.save(CachePaths(folder).images)
    return snapshot


@dataclass(eq=False)
class _Builder:
    """One build of a cache, from nothing or from what an earlier one left."""

    image_set: ImageSet
    decoding: Decoding
    files: CachePaths
    about: dict[str, Any]
    snapshot: Snapshot
    num_workers: int
    on_bad_image: str
    log: Log

    def build(self) -> None:
        """Bring the cache to completion; the lock must be held."""
        files = self.files
        kept = kept_images(files.folder, self.about)
        write_json(files.about, self.about)
        with one_thread_each():
            if kept is None:
                entries = np.zeros(len(self.image_set), ENTRY)
                rows = np.arange(len(entries))
            else:
                entries = read_entries(files.folder, len(self.image_set))
                rows = changed_rows(kept, self.snapshot)
                if len(rows):
                    first = describe_change(kept, self.snapshot, rows[0])
                    self.log(f"cache: {len(rows)} images have changed, the first {first}")

            self._entries = entries
            self._plan(rows)
            self._save_entries()
            self.snapshot.save(files.images)
            self._reserve()
            self._fill()
        write_json(files.about, self.about | {"index": checksum(self._entries)})
        self.log(f"cache: {files.folder} is complete")

    def _plan(self, rows: np.ndarray) -> None:
        """Find from the heads of files where the images of these rows will lie."""
        entries = self._entries
        entries[rows] = np.zeros((), ENTRY)
        with self._mapped(self._shape, rows.tolist(), "reading sizes") as shapes:
            for i, shape in zip(rows, shapes, strict=True):
                if isinstance(shape, ImageError):
                    self._note_broken(entries, i, shape)
                else:
                    entries["height"][i], entries["width"][i] = shape
        place(entries, rows)

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
        is_present = self._entries["state"] == PRESENT
        if path.stat().st_size < num_bytes(self._entries[is_present]):  # lost
            self._entries["state"][is_present] = MISSING
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
