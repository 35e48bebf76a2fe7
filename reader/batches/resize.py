"""Resizes crops of many sizes at once, on any device, to the bytes that `resize_bilinear` gives.

PyTorch resizes bytes in two passes, over the columns and then over the rows. In each a new pixel is
a sum of old ones with integer weights, rounded. Here a pass is one call of `embedding_bag`, which
adds up weighted rows of a table. For the first one every crop is cut into strips of STRIP rows,
which are turned on their sides, so that crops of all sizes are rows of one length; rows behind the
end of a crop are there, and of no use.

    strips of crops             (sum of their widths, STRIP x 3)
    -> sums over columns        (strips x T, STRIP x 3)
    -> turned back              (strips x STRIP, T x 3)
    -> sums over rows           (B x S, T x 3)

So the device is given as many operations for one image as for a thousand. The sums are exact: in
float32 while they have 24 bits, and in float64 where crops are reduced more than about four times.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from metric_learning.common.sizes import Size, sides
from metric_learning.reader.transforms import Crop

STRIP = 64  # rows; short crops waste what they lack, long ones need as many more indices as strips
CHANNELS = 3
LENGTH = STRIP * CHANNELS  # of a row of the table
MOST_BITS = 22  # of a weight behind the point, as PyTorch rounds it
WEIGHT_BITS = 15  # of a weight in all
FLOAT32_BITS = 16  # behind the point, with which a float32 holds sums of bytes exactly
CACHED_SIZES = 1024  # about 15 MB


class Sums(NamedTuple):
    """Weighted sums of rows of a table, one after the other."""

    rows: np.ndarray  # (M,) int32
    weights: np.ndarray  # (M,) float32
    counts: np.ndarray  # (N,) int32, how many rows each sum has


class Plan(NamedTuple):
    """How crops become images of one size: the sums of both passes, and the type they need."""

    columns: Sums
    rows: Sums
    dtype: torch.dtype


def num_strips(crop: Crop) -> int:
    """Return how many strips a crop is cut into."""
    return -(-crop.height // STRIP)


def num_values(crop: Crop, new_size: Size) -> int:
    """Return how many values a crop has where they are most, before or after a pass."""
    height, (new_height, new_width) = STRIP * num_strips(crop), sides(new_size)
    return CHANNELS * max(height * crop.width, height * new_width, new_height * new_width)


def cut_strips(rgb: np.ndarray, crop: Crop) -> np.ndarray:
    """Cut a crop of an image (H, W, 3) uint8 into rows of the table, (n, LENGTH) uint8."""
    box = rgb[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
    strips = np.zeros((num_strips(crop), crop.width, STRIP, CHANNELS), np.uint8)
    for number, strip in enumerate(strips):
        part = box[number * STRIP : (number + 1) * STRIP]
        strip[:, : len(part)] = cv2.transpose(part)
    return strips.reshape(-1, LENGTH)


def cut_strips_on_device(image: Tensor, crop: Crop) -> Tensor:
    """As `cut_strips`, of an image (3, H, W) uint8 on its device."""
    box = image[:, crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
    padded = F.pad(box, (0, 0, 0, -crop.height % STRIP))
    strips = padded.reshape(CHANNELS, -1, STRIP, crop.width).permute(1, 3, 2, 0)
    return strips.reshape(-1, LENGTH)


def plan_of(crops: Sequence[Crop], order: Sequence[int], new_size: Size) -> Plan:
    """Plan how crops, whose strips lie in the table in an `order`, become (B, S, T, 3)."""
    new_height, new_width = sides(new_size)
    first_rows, end = [0] * len(crops), 0
    for number in order:
        first_rows[number] = end
        end += num_strips(crops[number]) * crops[number].width

    across: list[Sums] = []
    down: list[Sums] = []
    bits, strips_before = 0, 0
    for crop, first in zip(crops, first_rows, strict=True):
        strips = num_strips(crop)
        columns, column_bits = line_sums(crop.width, new_width, crop.mirrored)
        begins = first + crop.width * np.arange(strips, dtype=np.int32)
        rows = (begins[:, None] + columns.rows).reshape(-1)
        across.append(Sums(rows, *(np.tile(values, strips) for values in columns[1:])))

        lines, line_bits = line_sums(crop.height, new_height)
        down.append(lines._replace(rows=lines.rows + np.int32(STRIP * strips_before)))
        bits, strips_before = max(bits, column_bits, line_bits), strips_before + strips

    dtype = torch.float32 if bits <= FLOAT32_BITS else torch.float64
    return Plan(_joined(across), _joined(down), dtype)


def _joined(parts: Sequence[Sums]) -> Sums:
    return Sums(*(np.concatenate(values) for values in zip(*parts, strict=True)))


@lru_cache(CACHED_SIZES)
def line_sums(size: int, new_size: int, is_mirrored: bool = False) -> tuple[Sums, int]:
    """Return of which pixels of a line each pixel of a new one is the sum, and with how many bits.

    The arithmetic is that of PyTorch's antialiased bilinear interpolation of bytes: triangles as
    wide as a new pixel in double precision, whose heights are then rounded to so many bits behind
    the point that the largest one just has 15 of them.
    """
    scale = size / new_size
    support = max(scale, 1.0)  # in pixels, to each side
    centres = scale * (np.arange(new_size) + 0.5)
    first = np.maximum((centres - support + 0.5).astype(np.int64), 0)
    counts = np.minimum((centres + support + 0.5).astype(np.int64), size) - first
    counts = np.minimum(counts, 2 * math.ceil(np.float32(support)) + 1)

    numbers = np.arange(counts.max())[:, None]
    distances = np.abs(numbers + first - centres + 0.5) / support
    weights = np.where(numbers < counts, np.maximum(1 - distances, 0.0), 0.0)  # KxS
    weights /= weights.sum(0)

    bits, largest = 0, weights.max()
    while bits < MOST_BITS and int(0.5 + largest * 2 ** (bits + 1)) < 2**WEIGHT_BITS:
        bits += 1
    weights = np.floor(weights * 2**bits + 0.5) / 2**bits

    order = slice(None, None, -1 if is_mirrored else 1)
    first, counts, weights = first[order], counts[order], weights.T[order]
    is_there = counts[:, None] > numbers.T
    rows = (first[:, None] + numbers.T)[is_there].astype(np.int32)
    return Sums(rows, weights[is_there].astype(np.float32), counts.astype(np.int32)), bits


def resize(
    table: Tensor,
    columns: Sequence[Tensor],
    rows: Sequence[Tensor],
    new_size: Size,
    dtype: torch.dtype,
) -> Tensor:
    """Return what a plan makes of a table of strips (n, LENGTH) uint8: (B, S, T, 3) uint8.

    Sums are rows (M,) int32 and weights (M,) float32, as planned, and their starts (N,) int32.
    """
    height, width = sides(new_size)
    sums = _add_up(table.to(dtype), *columns)
    strips = sums.floor_().view(-1, width, STRIP, CHANNELS)
    turned = strips.transpose(1, 2).contiguous().view(-1, width * CHANNELS)
    del sums, strips
    sums = _add_up(turned, *rows)
    return sums.to(torch.uint8).view(-1, height, width, CHANNELS)


def _add_up(table: Tensor, rows: Tensor, weights: Tensor, starts: Tensor) -> Tensor:
    """Return weighted sums of rows of a table, and a half: what is behind the point rounds them."""
    weights = weights.to(table.dtype)
    return F.embedding_bag(rows, table, starts, mode="sum", per_sample_weights=weights).add_(0.5)
