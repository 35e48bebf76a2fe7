"""Reads many image files in several processes, in whatever state the files are."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import NamedTuple, TypeVar

import cv2
import numpy as np
from tqdm import tqdm

from metric_learning.reader.sets.image_set import Decoding, ImageError, decode_image, read_file
from metric_learning.reader.sets.jpeg_damage import compile_check, find_damage
from metric_learning.reader.sets.jpeg_head import JPEG_START

DEFAULT_WORKERS = min(8, os.cpu_count() or 1)

Result = TypeVar("Result")


class Content(NamedTuple):
    """What an image file holds."""

    data: bytes | None  # its bytes; None where it cannot be read
    pixels: np.ndarray | None  # (H, W, 3) uint8 RGB; None where it is not ok
    state: str  # "ok", "broken" or "missing"
    reason: str  # why it is not ok, else ""


def read_content(path: str, decoding: Decoding) -> Content:
    """Read and decode one image file; a bad one is described, not raised.

    A JPEG whose data have a hole is broken, though a training would take what is decoded of it.
    """
    data = None
    try:
        data = read_file(path, decoding.max_pixels)
        pixels = decode_image(data, path, decoding)
    except ImageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return Content(None, None, "missing", "no such file")
        return Content(data, None, "broken", str(error).removeprefix(f"cannot read image {path}: "))

    damage = find_damage(data) if data.startswith(JPEG_START) else ""
    if damage:
        return Content(data, None, "broken", f"damaged JPEG: {damage}")
    return Content(data, pixels, "ok", "")


def map_files(
    function: Callable[[str], Result], paths: Sequence[str], num_workers: int
) -> list[Result]:
    """Apply a function to each path, with a progress bar; the results in the order of the paths.

    The function is called in `num_workers` processes; 0: in this one alone.
    """
    progress = partial(tqdm, total=len(paths), unit=" images", disable=None, leave=False)
    if num_workers == 0:
        return list(progress(map(function, paths)))
    compile_check()  # before the fork: else each of them does
    # One thread per worker: thread pools do not survive a fork and would compete.
    with ProcessPoolExecutor(num_workers, initializer=cv2.setNumThreads, initargs=(0,)) as pool:
        return list(progress(pool.map(function, paths, chunksize=32)))
