"""Counting for queries with many positives: each similarity is looked up among their thresholds.

The thresholds of a query are cut into as many bins of equal width as there are thresholds, and a
guide says where each bin begins: about one threshold is left to search, not all of them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from metric_learning.retrieval.counting.cpu.jit import kernel
from metric_learning.retrieval.counting.cpu.vectors import cosine

MANY = 128  # queries with more positives are counted here
LEAST_WIDTH = 1e-12  # of the range that is cut into bins: the number of bins in 1 stays finite


class Guides(NamedTuple):
    """Where the thresholds of each bin begin."""

    starts: np.ndarray  # (Q,) int64, where the guide of a query begins; not used for those with few
    # int32; from `starts[q]` on, for bins -1, 0, 1, ... the first position, counted from the
    # query's first threshold, whose bin is that one or a lower one
    places: np.ndarray


@kernel
def has_many(q, thresholds):
    """Whether a query is counted here."""
    return thresholds.offsets[q + 1] - thresholds.offsets[q] > MANY


@kernel
def make_guides(thresholds):
    """Make the guides of all queries with many positives."""
    sizes = np.diff(thresholds.offsets)
    lengths = np.where(sizes > MANY, sizes + 1, 0)
    starts = np.cumsum(lengths) - lengths
    places = np.empty(lengths.sum(), np.int32)
    for q in range(len(sizes)):
        if has_many(q, thresholds):
            cosines = thresholds.cosines[thresholds.offsets[q] : thresholds.offsets[q + 1]]
            scale, place = _bins_per_unit(cosines), 0
            for b in range(sizes[q] - 1, -2, -1):
                while place < sizes[q] and _bin_of(cosines[place], cosines, scale) > b:
                    place += 1
                places[starts[q] + b + 1] = place
    return Guides(starts, places)


@kernel
def _bins_per_unit(cosines):
    """How many bins a similarity of 1 has; 0, which leaves all in one, where thresholds agree."""
    width = cosines[0] - cosines[-1]
    return len(cosines) / width if width > LEAST_WIDTH else 0.0


@kernel
def _bin_of(value, cosines, scale):
    """Bin of a value that is not below the worst threshold; it never falls as the value rises."""
    return int(min((value - cosines[-1]) * scale, len(cosines) - 1.0))


@kernel
def _first_below(cosines, first, last, bound, or_equal):
    """First position in [first, last) whose threshold is below the bound; `last` if none is."""
    while first < last:
        middle = (first + last) // 2
        if cosines[middle] < bound or (or_equal and cosines[middle] == bound):
            last = middle
        else:
            first = middle + 1
    return first


@kernel
def _count_query(q, values, others, queries, gallery, thresholds, guides, margin, is_exact, counts):
    """Count the similarities (N,) of query q to the gallery images `others` (N,).

    The counts hold differences until `add_up` has been called.
    """
    first, last = thresholds.offsets[q], thresholds.offsets[q + 1]
    cosines = thresholds.cosines[first:last]
    ahead, level = counts.ahead[first:last], counts.level[first:last]
    guide = guides.places[guides.starts[q] : guides.starts[q] + len(cosines) + 1]
    scale = _bins_per_unit(cosines)

    for i in range(len(values)):
        exact = np.float64(values[i])
        high, bound = exact + margin, exact - margin
        passed = len(cosines)
        if bound >= cosines[-1]:
            b = _bin_of(bound, cosines, scale)
            passed = _first_below(cosines, guide[b + 1], guide[b], bound, True)

        if is_exact or (passed > 0 and cosines[passed - 1] <= high):
            if is_exact:
                passed = _first_below(cosines, passed, len(cosines), bound, False)
            else:
                g = others[i]
                exact = cosine(
                    queries.rows[q], gallery.rows[g], queries.norms[q] * gallery.norms[g]
                )
                bound = exact - thresholds.tolerance
                passed = _first_below(cosines, 0, len(cosines), bound, False)
            bound = exact + thresholds.tolerance
            if passed > 0 and cosines[passed - 1] <= bound:
                level[_first_below(cosines, 0, passed, bound, True)] += 1
                if passed < len(cosines):
                    level[passed] -= 1

        if passed < len(cosines):
            ahead[passed] += 1


@kernel
def add_up(thresholds, counts):
    """Turn the differences of queries with many positives into counts."""
    for q in range(len(thresholds.offsets) - 1):
        if has_many(q, thresholds):
            for p in range(thresholds.offsets[q] + 1, thresholds.offsets[q + 1]):
                counts.ahead[p] += counts.ahead[p - 1]
                counts.level[p] += counts.level[p - 1]


@kernel
def count_many(tile, queries, gallery, thresholds, guides, is_two_sided, margin, is_exact, counts):
    """Count the similarities of a tile for its queries with many positives, see `count_tile`."""
    values = tile.values.reshape(-1, tile.stride)[: tile.height, : tile.width]
    rows = queries.order[tile.row : tile.row + tile.height]
    columns = gallery.order[tile.column : tile.column + tile.width]
    rest = queries, gallery, thresholds, guides, margin, is_exact, counts
    for r, q in enumerate(rows):
        if has_many(q, thresholds):
            _count_query(q, values[r], columns, *rest)
    if is_two_sided:
        for c, q in enumerate(columns):
            if has_many(q, thresholds):
                _count_query(q, values[:, c], rows, *rest)
