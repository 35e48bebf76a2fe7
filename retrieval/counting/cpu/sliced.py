"""Cosines from two slices of int16 on the CPU: nearly those of float64, in less time than it takes.

What rounding to one slice leaves, see `screen`, is rounded to a second one in finer units. Three of
the four products of two vectors' slices are taken: that of the two finer ones is bounded, and left
out.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from metric_learning.retrieval.counting.cpu.instructions import ROWS_AT_ONCE, add_sliced_panels
from metric_learning.retrieval.counting.cpu.jit import any_order, kernel
from metric_learning.retrieval.counting.cpu.screen import (
    GREATEST_INTEGER,
    GREATEST_LENGTH,
    LANES,
    PANELS,
    SPARE,
    round_row,
)
from metric_learning.retrieval.counting.cpu.vectors import Vectors, dot
from metric_learning.retrieval.counting.thresholds import rounding_error

SEGMENT = 128  # dimensions whose products are added in int32


class Sliced(NamedTuple):
    """Normalised vectors, rounded, and what is left of them, rounded again in finer units."""

    # (panels, 2 pairs, LANES) int32, as `Rounded`; behind the pairs of a vector those of its rest
    panels: np.ndarray
    units: np.ndarray  # (N,) float64


class SlicedProduct:
    """A `Product` of vectors of two slices of int16, nearly as precise as float64.

    A vector is u (h + l / r) with integers h and l; r is the same for all. Of a product, only that
    of l with l is left out. The sums of SEGMENT dimensions are exact in int32.
    """

    dtype = np.float64
    grain = LANES * PANELS
    pause = 15

    def room(self, num_vectors: int, dim: int) -> Sliced:
        """See Product."""
        panels = -(-num_vectors // self.grain) * PANELS
        units = np.zeros(panels * LANES)
        return Sliced(np.empty((panels, 2 * -(-dim // 2), LANES), np.int32), units)

    def fill(self, vectors: Vectors, start: int, stop: int, out: Sliced) -> float:
        """See Product; half of the squared length of the finer slice is added.

        That of both vectors bounds what is left out: |l l'| <= (|l|^2 + |l'|^2) / 2.
        """
        greatest_error: float = _slice(vectors, start, stop, out, *_finer(vectors.rows.shape[1]))
        return greatest_error

    def multiply(
        self, rows: Sliced, columns: Sliced, height: int, part: tuple[int, int], out: np.ndarray
    ) -> None:
        """See Product."""
        segment, ratio = _finer(rows.panels.shape[1])
        _multiply(rows, columns, height, part, segment, ratio, out)

    def rounding_error(self, dim: int) -> float:
        """See Product."""
        return rounding_error(dim, np.float64)


def _finer(dim: int) -> tuple[int, float]:
    """Return the number of dimensions of a segment, even, and the ratio of the slices' units.

    The low integers of a segment, each at most ratio / 2 + 1 / 2, have at most half of the greatest
    length: the sum of two products with high ones stays in int32.
    """
    segment = min(SEGMENT, -(-dim // 2) * 2)
    return segment, np.floor(GREATEST_LENGTH / np.sqrt(segment)) - 1.0


@kernel
def _longest(row, segment):
    """Greatest length of the segments of a row (D,)."""
    squared = 0.0
    for start in range(0, len(row), segment):
        part = row[start : start + segment]
        squared = max(squared, dot(part, part))
    return np.sqrt(squared)


@any_order
def _round_rest(row, scale, ratio, high, low):
    """Round what `high` leaves of a row (D,) times a scale to `low` / ratio; return squared error.

    The row is that which `round_row` rounded to `high`.
    """
    error = 0.0
    for i in range(len(row)):
        exact = (np.float64(row[i]) * scale - high[i]) * ratio
        nearest = np.rint(exact)
        error += (exact - nearest) ** 2
        low[i] = np.int16(np.int32(nearest))
    return error / ratio**2


@kernel
def _slice(vectors, start, stop, out, segment, ratio):
    """Write rows start..stop, in order, to a Sliced; return the greatest error of one of them."""
    dim, pairs = vectors.rows.shape[1], out.panels.shape[1] // 2
    rounded = np.zeros((LANES, 4 * pairs + SPARE), np.int16)
    pairs_of_rows = rounded.view(np.int32)
    worst = 0.0

    for first in range(start, stop, LANES):
        for i in range(min(LANES, stop - first)):
            number = vectors.order[first + i]
            row, norm = vectors.rows[number], vectors.norms[number]
            high, low = rounded[i, :dim], rounded[i, 2 * pairs : 2 * pairs + dim]
            length = GREATEST_LENGTH - np.sqrt(segment) / 2
            scale = length / _longest(row, segment) if norm > 0.0 else 0.0
            squared_rest, greatest = round_row(row, scale, high)
            if greatest > GREATEST_INTEGER:
                scale *= GREATEST_INTEGER / (greatest + 0.5)
                squared_rest, _ = round_row(row, scale, high)
            squared_error = _round_rest(row, scale, ratio, high, low)

            unit = 1.0 / (scale * norm) if norm > 0.0 else 0.0
            error = np.sqrt(squared_error) * unit
            worst = max(worst, error + (np.sqrt(squared_rest) * unit + error) ** 2 / 2)
            out.units[first - start + i] = unit

        panel = out.panels[(first - start) // LANES]
        for pair in range(2 * pairs):
            for i in range(LANES):
                panel[pair, i] = pairs_of_rows[i, pair]
    return worst


@kernel
def _multiply(rows, columns, height, part, segment, ratio, out):
    """Write the cosines of two Sliced to `out` (2-D), and some more where the grain says so."""
    pairs, stride = rows.panels.shape[1] // 2, out.shape[1]
    low, panel = pairs * LANES, 2 * pairs * LANES
    row_pairs, column_pairs = rows.panels.reshape(-1), columns.panels.reshape(-1)
    cosines = out.reshape(-1)

    for left in range(part[0], part[1], LANES * PANELS):
        their_units = columns.units[left:]
        out[:height, left : left + LANES * PANELS] = 0.0
        for pair in range(0, pairs, segment // 2):  # that of the columns stays in the cache
            their_pairs = column_pairs[left // LANES * panel + pair * LANES :]
            number = min(segment // 2, pairs - pair)
            for top in range(0, height, ROWS_AT_ONCE):
                own_pairs = row_pairs[top // LANES * panel + pair * LANES + top % LANES :]
                own_units, place = rows.units[top:], cosines[top * stride + left :]
                add_sliced_panels(
                    own_pairs,
                    their_pairs,
                    panel,
                    low,
                    number,
                    own_units,
                    their_units,
                    ratio,
                    place,
                    stride,
                )
