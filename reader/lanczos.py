"""Lanczos resizing as OpenCV does it, to the bit, in a sixth of its time.

OpenCV sums 8 x 8 pixels per value in integers, so that any order of summing gives its result. Here
the sums run along contiguous rows, which processors do many at a time: first over the columns, of
the transposed image, then over the rows, of that transposed back.
"""

from __future__ import annotations

import math
import warnings
from functools import lru_cache
from typing import Any

import cv2
import numpy as np

TAPS = 8  # pixels along each axis that a value is made of
ONE = 2048  # the weight 1 in integers
SHIFT = np.int32(22)  # bits of ONE x ONE
HALF = np.int32(1 << 21)
LEAST, MOST = np.int32(0), np.int32(255)
S45 = math.sqrt(0.5)
# Of tap i: cosine and sine of its distance from the first tap, i x 5 pi / 4.
TURNS = np.array(
    [(1, 0), (-S45, -S45), (0, 1), (S45, -S45), (-1, 0), (S45, S45), (0, -1), (-S45, S45)]
)
CACHED_SIZES = 1024  # about 15 MB


def resize_lanczos(rgb: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return what cv2.resize returns with INTER_LANCZOS4: Lanczos over 8 x 8 pixels, no antialias.

    Args:
        rgb: (H, W, 3) uint8, of any strides.
        height: of the result in pixels.
        width: of the result in pixels.

    Shape:
        returns: (height, width, 3) uint8, contiguous.
    """
    if sum_lines is None:
        return cv2.resize(rgb, (width, height), interpolation=cv2.INTER_LANCZOS4)
    num_rows, num_columns = rgb.shape[:2]
    columns = cv2.transpose(rgb).reshape(num_columns, num_rows * 3)
    sums = np.empty((width, num_rows * 3), np.int32)
    sum_lines(columns, *_taps(num_columns, width), sums)
    rows = cv2.transpose(sums.reshape(width, num_rows, 3)).reshape(num_rows, width * 3)
    values = np.empty((height, width * 3), np.uint8)
    sum_and_round(rows, *_taps(num_rows, height), values)
    return values.reshape(height, width, 3)


@lru_cache(CACHED_SIZES)
def _taps(size: int, new_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return which pixels of a line make each of its new pixels, and with which weights.

    The arithmetic is OpenCV's, in single precision where it is so there.

    Returns:
        pixels: (new_size, 8) int64, within the line.
        weights: (new_size, 8) int32, about 2048 in sum.
    """
    positions = ((np.arange(new_size) + 0.5) * (1 / (new_size / size)) - 0.5).astype(np.float32)
    first = np.floor(positions).astype(np.int64) - 3
    offsets = positions - np.floor(positions)  # 0..1
    numbers = np.arange(TAPS, dtype=np.float32)
    distances = offsets[:, None] + np.float32(3) - numbers  # in pixels
    angles = -distances.astype(np.float64) * (math.pi / 4)
    sines = np.sin(angles[:, :1]) * TURNS[:, 0] + np.cos(angles[:, :1]) * TURNS[:, 1]
    is_hit = np.abs(distances) < 1e-6  # it then outweighs all others
    with np.errstate(divide="ignore", invalid="ignore"):
        weights = np.where(is_hit, 1e30, sines / angles**2).astype(np.float32)
    total = np.zeros(new_size, np.float32)
    for tap in range(TAPS):
        total += weights[:, tap]
    weights *= (np.float32(1) / total)[:, None]
    pixels = np.clip(first[:, None] + np.arange(TAPS), 0, size - 1)
    return pixels, np.rint(weights * np.float32(ONE)).astype(np.int32)


def _sum_line(lines: Any, taps: Any, weights: Any, sums: Any) -> None:
    """Add up eight weighted lines, of (n, M), as sums (M,) int32."""
    a, b, c, d = lines[taps[0]], lines[taps[1]], lines[taps[2]], lines[taps[3]]
    e, f, g, h = lines[taps[4]], lines[taps[5]], lines[taps[6]], lines[taps[7]]
    of_a, of_b, of_c, of_d = weights[0], weights[1], weights[2], weights[3]
    of_e, of_f, of_g, of_h = weights[4], weights[5], weights[6], weights[7]
    for j in range(len(sums)):  # all eight in one go: nothing is stored in between
        total = a[j] * of_a + b[j] * of_b + c[j] * of_c + d[j] * of_d
        total += e[j] * of_e + f[j] * of_f + g[j] * of_g + h[j] * of_h
        sums[j] = np.int32(total)


def _sum_lines(lines: Any, taps: Any, weights: Any, sums: Any) -> None:
    """Fill all lines of sums, (S, M) int32."""
    for i in range(len(sums)):
        sum_line(lines, taps[i], weights[i], sums[i])


def _sum_and_round(lines: Any, taps: Any, weights: Any, values: Any) -> None:
    """Fill all lines of values, (S, M) uint8, with rounded sums."""
    sums = np.empty(values.shape[1], np.int32)
    for i in range(len(values)):
        sum_line(lines, taps[i], weights[i], sums)
        line = values[i]
        for j in range(len(line)):
            value = np.int32(np.int32(sums[j] + HALF) >> SHIFT)  # else numba takes 64 bits
            line[j] = np.uint8(min(max(value, LEAST), MOST))


sum_lines: Any  # compiled, or None
sum_and_round: Any
try:
    import numba

    compiled = numba.njit(nogil=True, cache=True)
    sum_line = compiled(_sum_line)
    sum_lines, sum_and_round = compiled(_sum_lines), compiled(_sum_and_round)
except (ImportError, RuntimeError) as error:  # no numba, or no folder for what it compiles
    sum_lines = sum_and_round = None
    warnings.warn(f"images are resized by OpenCV, which takes longer: {error}", stacklevel=2)
