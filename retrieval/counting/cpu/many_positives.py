"""Counting for queries with many positives: each similarity is looked up among their thresholds.

The thresholds of a query are cut into as many bins of equal width as there are thresholds, and a
guide says where each bin begins: what is left to search is about one threshold, not all of them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from metric_learning.retrieval.counting.cpu.jit import kernel
from metric_learning.retrieval.counting.cpu.vectors import cosine

FEW = 128  # queries with more positives are counted here
LEAST_WIDTH = 1e-12  # of what is cut into bins: the number of bins in 1 stays finite


class Guides(NamedTuple):
    """Where the thresholds of each bin begin.

    Attributes:
        starts: (Q,) int64, where the guide of a query begins; not used for those with few.
        places: int32; from `starts[q]` on, for bins -1, 0, 1, ... the first position, counted from
            the query's first threshold, whose bin is that one or a lower one.
    """

    starts: np.ndarray
    places: np.ndarray


@kernel
def has_many(q, truth):
    """Whether a query is counted here."""
    return truth.offsets[q + 1] - truth.offsets[q] > FEW


@kernel
def make_guides(truth):
    """Make the guides of all queries with many positives."""
    sizes = np.diff(truth.offsets)
    lengths = np.where(sizes > FEW, sizes + 1, 0)
    starts = np.cumsum(lengths) - lengths
    places = np.empty(lengths.sum(), np.int32)
    for q in range(len(sizes)):
        if has_many(q, truth):
            thresholds = truth.thresholds[truth.offsets[q] : truth.offsets[q + 1]]
            scale, place = _bins_per_unit(thresholds), 0
            for b in range(sizes[q] - 1, -2, -1):
                while place < sizes[q] and _bin_of(thresholds[place], thresholds, scale) > b:
                    place += 1
                places[starts[q] + b + 1] = place
    return Guides(starts, places)


@kernel
def _bins_per_unit(thresholds):
    """How many bins a similarity of 1 has; 0, which leaves all in one, where thresholds agree."""
    width = thresholds[0] - thresholds[-1]
    return len(thresholds) / width if width > LEAST_WIDTH else 0.0


@kernel
def _bin_of(value, thresholds, scale):
    """Bin of a value that is not below the worst threshold; it never falls as the value rises."""
    return int(min((value - thresholds[-1]) * scale, len(thresholds) - 1.0))


@kernel
def _first_below(thresholds, first, last, bound, or_equal):
    """First position in [first, last) whose threshold is below the bound; `last` if none is."""
    while first < last:
        middle = (first + last) // 2
        if thresholds[middle] < bound or (or_equal and thresholds[middle] == bound):
            last = middle
        else:
            first = middle + 1
    return first


@kernel
def _count_query(q, values, others, queries, gallery, truth, guides, margin, is_exact, counts):
    """Count the similarities (N,) of query q to the gallery images `others` (N,).

    The counts hold differences until `add_up` has been called.
    """
    first, last = truth.offsets[q], truth.offsets[q + 1]
    thresholds = truth.thresholds[first:last]
    ahead, level = counts.ahead[first:last], counts.level[first:last]
    guide = guides.places[guides.starts[q] : guides.starts[q] + len(thresholds) + 1]
    scale = _bins_per_unit(thresholds)
    for i in range(len(values)):
        exact = np.float64(values[i])
        high, bound = exact + margin, exact - margin
        passed = len(thresholds)
        if bound >= thresholds[-1]:
            b = _bin_of(bound, thresholds, scale)
            passed = _first_below(thresholds, guide[b + 1], guide[b], bound, True)
        if is_exact or (passed > 0 and thresholds[passed - 1] <= high):
            if is_exact:
                passed = _first_below(thresholds, passed, len(thresholds), bound, False)
            else:
                g = others[i]
                exact = cosine(
                    queries.rows[q], gallery.rows[g], queries.norms[q] * gallery.norms[g]
                )
                bound = exact - truth.tolerance
                passed = _first_below(thresholds, 0, len(thresholds), bound, False)
            bound = exact + truth.tolerance
            if passed > 0 and thresholds[passed - 1] <= bound:
                level[_first_below(thresholds, 0, passed, bound, True)] += 1
                if passed < len(thresholds):
                    level[passed] -= 1
        if passed < len(thresholds):
            ahead[passed] += 1


@kernel
def add_up(truth, counts):
    """Turn the differences of queries with many positives into counts."""
    for q in range(len(truth.offsets) - 1):
        if has_many(q, truth):
            for p in range(truth.offsets[q] + 1, truth.offsets[q + 1]):
                counts.ahead[p] += counts.ahead[p - 1]
                counts.level[p] += counts.level[p - 1]


@kernel
def count_many(tile, queries, gallery, truth, guides, is_two_sided, margin, is_exact, counts):
    """Count the similarities of a tile for its queries with many positives, see `count_tile`."""
    values = tile.values.reshape(-1, tile.stride)[: tile.height, : tile.width]
    rows = queries.order[tile.row : tile.row + tile.height]
    columns = gallery.order[tile.column : tile.column + tile.width]
    rest = queries, gallery, truth, guides, margin, is_exact, counts
    for r, q in enumerate(rows):
        if has_many(q, truth):
            _count_query(q, values[r], columns, *rest)
    if is_two_sided:
        for c, q in enumerate(columns):
            if has_many(q, truth):
                _count_query(q, values[:, c], rows, *rest)
