"""Counting for queries with many positives, whose similarities come many at a time.

The range of a query's thresholds is cut into bins of equal width. A table says of each bin which
threshold all similarities in it pass first; where a bin, or what may be a rounding error beside it,
holds thresholds, they are searched. Table and counts of a query fit into the cache while a tile of
few rows and many columns is counted. Images of the query's own class are left out by their place.
"""

from __future__ import annotations

import numpy as np

from metric_learning.retrieval.counting.cpu.jit import kernel
from metric_learning.retrieval.counting.cpu.vectors import cosine

MANY = 128  # queries with more positives are counted here
BINS_EACH = 2  # bins per threshold
LEAST_WIDTH = 1e-12  # of the range that is cut into bins: the number of bins in 1 stays finite
SAMPLED_ROWS, SAMPLED_COLUMNS = 4, 256  # of a tile, to learn how much of it is not decided


@kernel
def make_tables(queries, thresholds, margin):
    """Make the tables of queries (B,), see `_fill`, one behind the other, int32."""
    places = np.zeros(len(queries) + 1, np.int64)
    for i, q in enumerate(queries):
        num_bins = BINS_EACH * (thresholds.offsets[q + 1] - thresholds.offsets[q])
        places[i + 1] = places[i] + num_bins
    table = np.empty(places[-1], np.int32)
    for i, q in enumerate(queries):
        cosines = thresholds.cosines[thresholds.offsets[q] : thresholds.offsets[q + 1]]
        _fill(cosines, margin, table[places[i] : places[i + 1]])
    return places, table


@kernel
def _fill(cosines, margin, table):
    """Write the table of a query, from its thresholds (R,), best first.

    A bin has the first threshold that all similarities in it pass, R where they pass none; one that
    some of them may not pass, or pass by no more than the margin, has -1 - the first of those that
    may be passed.
    """
    scale = _bins_per_unit(cosines, len(table))
    place = 0
    for b in range(len(table) - 1, -1, -1):
        low = cosines[-1] + (b / scale if scale > 0.0 else 0.0) - margin - LEAST_WIDTH
        high = cosines[-1] + ((b + 1) / scale if scale > 0.0 else 0.0) + margin + LEAST_WIDTH
        if b == len(table) - 1:
            high = np.inf
        while place < len(cosines) and cosines[place] > high:
            place += 1
        is_clear = b > 0 and (place == len(cosines) or cosines[place] < low)
        table[b] = place if is_clear else -1 - place


@kernel
def _bins_per_unit(cosines, num_bins):
    """How many bins a similarity of 1 has; 0, which leaves all in one, where thresholds agree."""
    width = cosines[0] - cosines[-1]
    return num_bins / width if width > LEAST_WIDTH else 0.0


@kernel
def _first_passed(cosines, first, last, value, or_equal):
    """First position in [first, last) whose threshold is below the value; `last` if none is."""
    while first < last:
        middle = (first + last) // 2
        if value > cosines[middle] or (or_equal and value == cosines[middle]):
            last = middle
        else:
            first = middle + 1
    return first


@kernel
def _count_values(q, values, others, queries, gallery, thresholds, table, margin, exact, counts):
    """Count the similarities (N,) of query q to the gallery images `others` (N,).

    The counts hold differences until `add_up` has been called.
    """
    first, last = thresholds.offsets[q], thresholds.offsets[q + 1]
    cosines, tolerance = thresholds.cosines[first:last], thresholds.tolerance
    ahead, level = counts.ahead[first:last], counts.level[first:last]
    scale, lowest = _bins_per_unit(cosines, len(table)), cosines[-1]

    for i in range(len(values)):
        value = np.float64(values[i])
        if value < lowest - margin:
            continue
        b = int(min(max((value - lowest) * scale, 0.0), len(table) - 1.0))
        place = table[b]
        if place >= 0:
            if place < len(cosines):
                ahead[place] += 1
            continue

        end = len(cosines) if b == 0 else table[b - 1] if table[b - 1] >= 0 else -1 - table[b - 1]
        place = _first_passed(cosines, -1 - place, end, value + margin, True)
        if place < len(cosines) and cosines[place] >= value - margin:
            if not exact:
                g = others[i]
                norm = queries.norms[q] * gallery.norms[g]
                value = cosine(queries.rows[q], gallery.rows[g], norm)
            reached = _first_passed(cosines, 0, len(cosines), value + tolerance, True)
            place = _first_passed(cosines, reached, len(cosines), value - tolerance, False)
            if reached < place:
                level[reached] += 1
                if place < len(cosines):
                    level[place] -= 1
        if place < len(cosines):
            ahead[place] += 1


@kernel
def count_rows(tile, queries, gallery, thresholds, places, table, counts):
    """Count the negatives of a Tile for the queries that are its rows.

    `queries` and `gallery` are Vectors, the latter in the order of the thresholds; places and table
    are those of `make_tables`; ahead and level of `counts`, (M,) each, are added to.
    """
    exact, margin = tile.error == 0.0, thresholds.tolerance + tile.error
    others = gallery.order[tile.column : tile.column + tile.width]
    for r in range(tile.height):
        q, start = queries.order[tile.row + r], r * tile.stride
        first = min(max(thresholds.firsts[q] - tile.column, 0), tile.width)
        last = min(max(thresholds.lasts[q] - tile.column, first), tile.width)
        own, rest = table[places[r] : places[r + 1]], (margin, exact, counts)
        for left, right in ((0, first), (last, tile.width)):
            values = tile.values[start + left : start + right]
            part = others[left:right]
            _count_values(q, values, part, queries, gallery, thresholds, own, *rest)


@kernel
def undecided_share(tile, queries, thresholds):
    """Estimate, from some rows and columns, how many of a tile's similarities are not decided."""
    margin, undecided, seen = thresholds.tolerance + tile.error, 0, 0
    for r in range(0, tile.height, max(1, tile.height // SAMPLED_ROWS)):
        q = queries.order[tile.row + r]
        cosines = thresholds.cosines[thresholds.offsets[q] : thresholds.offsets[q + 1]]
        for c in range(0, tile.width, max(1, tile.width // SAMPLED_COLUMNS)):
            if thresholds.firsts[q] <= tile.column + c < thresholds.lasts[q]:
                continue
            value = np.float64(tile.values[r * tile.stride + c])
            place = _first_passed(cosines, 0, len(cosines), value + margin, True)
            undecided += place < len(cosines) and cosines[place] >= value - margin
            seen += 1
    return undecided / max(seen, 1)


@kernel
def add_up(queries, thresholds, counts):
    """Turn the differences of queries (B,) into counts."""
    for q in queries:
        for p in range(thresholds.offsets[q] + 1, thresholds.offsets[q + 1]):
            counts.ahead[p] += counts.ahead[p - 1]
            counts.level[p] += counts.level[p - 1]
