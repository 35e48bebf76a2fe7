"""Compiled inner loops of the exact ranks on the CPU (numba); they release the interpreter lock.

A query's positives are given by their cosines, see `Thresholds`. For positive p, `ahead[p]` counts
the gallery images more similar than it by more than the tolerance, `level[p]` those that tie with
it. Both count every gallery image, the positives and the query itself included, which
`compiled.CpuCounter` takes out again.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from metric_learning.retrieval.counting.cpu.instructions import (
    LANES,
    count_columns_reaching,
    count_reaching,
)
from metric_learning.retrieval.counting.cpu.jit import kernel
from metric_learning.retrieval.counting.cpu.vectors import cosine

STRIP = 128  # rows of a tile whose columns are counted together
BLOCK = 64  # similarities searched together for those that are undecided
SAMPLED_ROWS = 16  # of a tile, to learn how much of it is not decided by its values


class Counts(NamedTuple):
    """How many gallery images are ahead of each threshold, and level with it, (M,) int32."""

    ahead: np.ndarray
    level: np.ndarray


@kernel
def _decide(q, g, p, queries, gallery, thresholds, counts):
    exact = cosine(queries.rows[q], gallery.rows[g], queries.norms[q] * gallery.norms[g])
    if exact > thresholds.cosines[p] + thresholds.tolerance:
        counts.ahead[p] += 1
    elif exact >= thresholds.cosines[p] - thresholds.tolerance:
        counts.level[p] += 1


@kernel
def _bounds_of(p, thresholds, margin, is_exact):
    """Two bounds: what reaches the high one is ahead, the low one alone level or undecided."""
    threshold, tolerance = thresholds.cosines[p], thresholds.tolerance
    if is_exact:
        return threshold - tolerance, np.nextafter(threshold + tolerance, np.inf)
    return threshold - margin, threshold + margin


@kernel
def _padded(width):
    return (width + LANES - 1) // LANES * LANES


@kernel
def _count_row(tile, r, queries, gallery, thresholds, margin, is_exact, counts, bounds):
    """Count row r of a tile for its query, the worst positive first."""
    q, start, width = queries.order[tile.row + r], r * tile.stride, _padded(tile.width)
    for p in range(thresholds.offsets[q + 1] - 1, thresholds.offsets[q] - 1, -1):
        # Through an array of the tile's type: bounds are rounded to it.
        bounds[0], bounds[1] = _bounds_of(p, thresholds, margin, is_exact)
        low, high = bounds[0], bounds[1]
        at_least, ahead = count_reaching(tile.values, start, width // LANES, low, high)
        if at_least == 0:
            break

        counts.ahead[p] += ahead
        if is_exact:
            counts.level[p] += at_least - ahead
        elif at_least > ahead:
            for block in range(0, width, BLOCK):
                length = min(BLOCK, width - block)
                at_least, ahead = count_reaching(
                    tile.values, start + block, length // LANES, low, high
                )
                if at_least > ahead:
                    for c in range(block, block + length):
                        if low <= tile.values[start + c] < high:
                            g = gallery.order[tile.column + c]
                            _decide(q, g, p, queries, gallery, thresholds, counts)


@kernel
def _column_bounds(tile, queries, thresholds, margin, is_exact):
    """Bounds of the queries that are the columns of a tile, (G, P, 2 * LANES).

    Per group of LANES columns, the worst positive of each first; infinite where there is none.
    """
    most = 0
    for q in queries:
        most = max(most, thresholds.offsets[q + 1] - thresholds.offsets[q])

    bounds = np.empty((_padded(tile.width) // LANES, most, 2 * LANES), tile.values.dtype)
    bounds[:] = np.inf
    for c, q in enumerate(queries):
        for p in range(thresholds.offsets[q], thresholds.offsets[q + 1]):
            low, high = _bounds_of(p, thresholds, margin, is_exact)
            place = thresholds.offsets[q + 1] - 1 - p
            bounds[c // LANES, place, c % LANES] = low
            bounds[c // LANES, place, LANES + c % LANES] = high
    return bounds


@kernel
def _count_columns(tile, top, left, bounds, vectors, thresholds, is_exact, counts, reached):
    """Count LANES columns of STRIP rows of a tile, from (top, left) on, for their queries."""
    height = min(STRIP, tile.height - top)
    start = top * tile.stride + left
    queries = vectors.order[tile.column + left : tile.column + min(left + LANES, tile.width)]
    for i in range(len(bounds)):
        if not count_columns_reaching(tile.values, start, tile.stride, height, bounds[i], reached):
            break

        for lane, q in enumerate(queries):
            at_least, ahead = reached[lane], reached[LANES + lane]
            if at_least == 0:
                continue
            p = thresholds.offsets[q + 1] - 1 - i
            counts.ahead[p] += ahead
            if is_exact:
                counts.level[p] += at_least - ahead
            elif at_least > ahead:
                for r in range(height):
                    value = tile.values[start + r * tile.stride + lane]
                    if bounds[i, lane] <= value < bounds[i, LANES + lane]:
                        g = vectors.order[tile.row + top + r]
                        _decide(q, g, p, vectors, vectors, thresholds, counts)


@kernel
def count_tile(tile, queries, gallery, thresholds, is_two_sided, counts):
    """Count the similarities of a Tile for the queries that are its rows, and its columns if so.

    `queries` and `gallery` are Vectors; ahead and level of `counts`, (M,) each, are added to.
    """
    is_exact = tile.error == 0.0  # else similarities near a threshold are decided in float64
    margin = thresholds.tolerance + tile.error
    column_queries = gallery.order[tile.column : tile.column + tile.width * is_two_sided]
    row_bounds = np.empty(2, tile.values.dtype)
    reached = np.empty(2 * LANES, np.int32)
    bounds = _column_bounds(tile, column_queries, thresholds, margin, is_exact)

    for top in range(0, tile.height, STRIP):  # a strip stays in the cache
        for r in range(top, min(top + STRIP, tile.height)):
            _count_row(tile, r, queries, gallery, thresholds, margin, is_exact, counts, row_bounds)
        for left in range(0, len(column_queries), LANES):
            group = bounds[left // LANES]
            _count_columns(tile, top, left, group, gallery, thresholds, is_exact, counts, reached)


@kernel
def undecided_share(tile, queries, thresholds):
    """Estimate, from some rows, how many of a tile's similarities its error leaves undecided.

    Comparisons per similarity; may exceed 1, as a query has several positives.
    """
    if tile.error == 0.0:
        return 0.0
    margin = thresholds.tolerance + tile.error
    bounds = np.empty(2, tile.values.dtype)
    undecided, rows = 0, 0

    for r in range(0, tile.height, max(1, tile.height // SAMPLED_ROWS)):
        q = queries.order[tile.row + r]
        rows += 1
        for p in range(thresholds.offsets[q], thresholds.offsets[q + 1]):
            bounds[0], bounds[1] = thresholds.cosines[p] - margin, thresholds.cosines[p] + margin
            at_least, ahead = count_reaching(
                tile.values, r * tile.stride, _padded(tile.width) // LANES, bounds[0], bounds[1]
            )
            undecided += at_least - ahead
    return undecided / (rows * tile.width)
