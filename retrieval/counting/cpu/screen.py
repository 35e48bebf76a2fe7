"""Cosines from int16 on the CPU: in half of the time of float32, and less precise.

Rows are normalised, scaled and rounded to int16. Their products are exact in int32, so the error of
a cosine comes from the rounded rows, and that is measured. x86 CPUs can do this from AVX2 on; on
others there is no such product.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from metric_learning.retrieval.counting.cpu.instructions import (
    PAIR_PRODUCT,
    ROWS_AT_ONCE,
    multiply_panels,
)
from metric_learning.retrieval.counting.cpu.jit import any_order, kernel
from metric_learning.retrieval.counting.cpu.vectors import Vectors
from metric_learning.retrieval.counting.thresholds import rounding_error

LANES, PANELS = (PAIR_PRODUCT.lanes, PAIR_PRODUCT.panels) if PAIR_PRODUCT else (16, 4)
# Rows no longer than this have no sum of products, whole or in part, outside of int32 (by
# Cauchy-Schwarz). Rounding makes a row longer by at most sqrt(D) / 2.
GREATEST_LENGTH = 46340.0
GREATEST_INTEGER = 32767.0
SPARE = 32  # columns between rows, against cache conflicts when they are transposed


class Rounded(NamedTuple):
    """Normalised vectors, rounded."""

    panels: np.ndarray  # (panels, pairs, LANES) int32, each of them a pair of int16 of one vector
    units: np.ndarray  # (N,) float32, the value of an integer 1 in each vector


class Int16Product:
    """A `Product` of vectors rounded to int16."""

    dtype = np.float32
    grain = LANES * PANELS
    pause = 15

    def room(self, num_vectors: int, dim: int) -> Rounded:
        """See Product."""
        panels = -(-num_vectors // self.grain) * PANELS
        units = np.zeros(panels * LANES, np.float32)
        return Rounded(np.empty((panels, -(-dim // 2), LANES), np.int32), units)

    def fill(self, vectors: Vectors, start: int, stop: int, out: Rounded) -> float:
        """See Product."""
        greatest_error: float = _quantise(vectors, start, stop, out)
        return greatest_error

    def multiply(
        self, rows: Rounded, columns: Rounded, height: int, part: tuple[int, int], out: np.ndarray
    ) -> None:
        """See Product."""
        _multiply(rows, columns, height, part, out)

    def rounding_error(self, dim: int) -> float:
        """See Product; sums are exact, only their scaling is rounded."""
        return rounding_error(0, np.float32)


@any_order
def round_row(row, scale, out):
    """Round a row (D,) times a scale to int16 `out` (D,); return squared error, largest integer."""
    error, greatest = 0.0, np.int32(0)
    for i in range(len(row)):
        exact = np.float64(row[i]) * scale
        nearest = np.rint(exact)
        error += (exact - nearest) ** 2
        integer = np.int32(nearest)
        greatest = max(greatest, abs(integer))
        out[i] = np.int16(integer)
    return error, greatest  # which `out` may not be able to hold


@kernel
def _quantise(vectors, start, stop, out):
    """Write rows start..stop, in order, to a Rounded; return the greatest error of one of them."""
    dim, pairs = vectors.rows.shape[1], out.panels.shape[1]
    rounded = np.zeros((LANES, 2 * pairs + SPARE), np.int16)
    pairs_of_rows = rounded.view(np.int32)
    worst = 0.0

    for first in range(start, stop, LANES):
        for i in range(min(LANES, stop - first)):
            row, norm = vectors.order[first + i], vectors.norms[vectors.order[first + i]]
            inverse = 1.0 / norm if norm > 0.0 else 0.0
            length = GREATEST_LENGTH - np.sqrt(dim) / 2
            error, greatest = round_row(vectors.rows[row], length * inverse, rounded[i, :dim])
            if greatest > GREATEST_INTEGER:
                length *= GREATEST_INTEGER / (greatest + 0.5)
                error, _ = round_row(vectors.rows[row], length * inverse, rounded[i, :dim])
            worst = max(worst, np.sqrt(error) / length)
            out.units[first - start + i] = 1.0 / length

        panel = out.panels[(first - start) // LANES]
        for pair in range(pairs):
            for i in range(LANES):
                panel[pair, i] = pairs_of_rows[i, pair]
    return worst


@kernel
def _multiply(rows, columns, height, part, out):
    """Write the cosines of two Rounded to `out` (2-D), and some more where the grain says so."""
    pairs, stride = rows.panels.shape[1], out.shape[1]
    panel = pairs * LANES
    row_pairs, column_pairs = rows.panels.reshape(-1), columns.panels.reshape(-1)
    cosines = out.reshape(-1)
    for left in range(part[0], part[1], LANES * PANELS):
        their_pairs, their_units = column_pairs[left // LANES * panel :], columns.units[left:]
        for top in range(0, height, ROWS_AT_ONCE):
            own_pairs = row_pairs[top // LANES * panel + top % LANES :]
            own_units, place = rows.units[top:], cosines[top * stride + left :]
            multiply_panels(
                own_pairs, their_pairs, panel, pairs, own_units, their_units, place, stride
            )
