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

from metric_learning.reader.sets.image_set import ImageError, decode_image

DEFAULT_WORKERS = min(8, os.cpu_count() or 1)

Result = TypeVar("Result")


class Content(NamedTuple):
    """What an image file holds."""

    data: bytes | None  # its bytes; None where it cannot be read
    pixels: np.ndarray | None  # (H, W, 3) uint8 RGB; None where it cannot be decoded
    state: str  # "ok", "broken" or "missing"
    reason: str  # why it is not ok, else ""


def read_content(path: str) -> Content:
    """Read and decode one image file; a bad one is described, not raised."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        return Content(None, None, "missing", "no such file")
    except OSError as error:
        return Content(None, None, "broken", error.strerror or str(error))
    try:
        return Content(data, decode_image(data, path), "ok", "")
    except ImageError as error:
        reason = str(error).removeprefix(f"cannot read image {path}: ")
        return Content(data, None, "broken", reason)


def map_files(
    function: Callable[[str], Result], paths: Sequence[str], num_workers: int
) -> list[Result]:
    """Apply a function to each path, with a progress bar; the results in the order of the paths.

    The function is called in `num_workers` processes; 0: in this one alone.
    """
    progress = partial(tqdm, total=len(paths), unit=" images", disable=None, leave=False)
    if num_workers == 0:
        return list(progress(map(function, paths)))
    # One thread per worker: thread pools do not survive a fork and would compete.
    with ProcessPoolExecutor(num_workers, initializer=cv2.setNumThreads, initargs=(0,)) as pool:
        return list(progress(pool.map(function, paths, chunksize=32)))
