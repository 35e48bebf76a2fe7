"""Arrays in .npy files, whose headers may say anything."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from metric_learning.common.text_files import check_regular


def map_array(path: Path, what: str) -> np.ndarray:
    """Map an array from a .npy file; ValueError where it holds something else.

    `what` is the file's name in messages. Nothing in the file is run.
    """
    check_regular(path, what)
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # a header that was made up can raise anything
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"{what} is damaged: not an array in a .npy file ({reason})") from error

    if not isinstance(array, np.ndarray):
        raise ValueError(f"{what} is damaged: expected one array, found an archive")
    return array


def open_array(path: Path, what: str) -> np.ndarray:
    """Map an array (N, D) float from a .npy file, as `map_array` does; ValueError for others."""
    array = map_array(path, what)
    if array.ndim != 2 or array.dtype.kind != "f":
        found = f"{array.dtype} {array.shape}"
        raise ValueError(f"{what} is damaged: expected (N, D) numbers, found {found}")
    return array
