"""Counting for queries with many positives, whose similarities come many at a time.

The range of most of a query's thresholds is cut into bins of equal width. A table says where in the
sorted thresholds to begin for a similarity of a bin; a step or two further is the first threshold
that it passes. Nothing of this needs to be right: that the similarity lies between the two
thresholds that are found, and further from both than its error, is asked last, and what fails is
searched anew and decided in float64. Images of the query's own class are left out by their place.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from metric_learning.retrieval.counting.cpu.jit import kernel
from metric_learning.retrieval.counting.cpu.vectors import cosine

BINS_EACH = 2  # bins per threshold
OUTER = 256  # of so many thresholds, one on each side lies outside of the bins, as outliers do
STEPS = 2  # thresholds that a similarity is compared with, from the first of its bin on
LEAST_WIDTH = 1e-12  # of the range that is cut into bins: the number of bins in 1 stays finite
CHUNK = 512  # similarities that are placed together, in the fastest cache
SAMPLED_ROWS, SAMPLED_COLUMNS = 4, 256  # of a tile, to learn how much of it is not decided


class Room(NamedTuple):
    """Memory for one query with up to R thresholds, and for CHUNK of its similarities."""

    bounds: np.ndarray  # (R + 2,) of the tile's type: inf, the thresholds best first, -inf
    # (BINS_EACH R + 1,) int32, for similarities below all bins, then for each bin from there on:
    # the number of the bound to begin with
    table: np.ndarray
    tally: np.ndarray  # (R + 2,) int32, how many similarities have each bound as the first passed

    places: np.ndarray  # int32, the number of the first bound that is passed
    slack: np.ndarray  # of the tile's type, the distance to the nearer bound
    unsure: np.ndarray  # (CHUNK + 1,) int32, numbers of those that are too close to a bound


def make_room(most: int, dtype: np.dtype) -> Room:
    """Make room for queries with up to so many thresholds and tiles of a type."""
    numbers = np.empty(most + 2, dtype), np.empty(BINS_EACH * most + 1, np.int32)
    tally, slack = np.empty(most + 2, np.int32), np.empty(CHUNK, dtype)
    return Room(*numbers, tally, np.empty(CHUNK, np.int32), slack, np.empty(CHUNK + 1, np.int32))


@kernel
def _fill(cosines, bounds, table):
    """Write the bounds (R + 2,) of a query and its table, from its thresholds (R,)."""
    bounds[0], bounds[-1] = np.inf, -np.inf
    bounds[1:-1] = cosines
    (lowest, scale), last = _bins_of(bounds, table), len(table) - 1
    table[:] = 0
    for bound in bounds[1:-1]:
        table[min(max(int((bound - lowest) * scale + 1), 0), last)] += 1

    place = 1
    for b in range(last, -1, -1):
        table[b], place = place, place + table[b]


@kernel
def _bins_of(bounds, table):
    """Lowest similarity that has a bin of its own, and how many bins a similarity of 1 has."""
    outer = (len(bounds) - 2) // OUTER
    lowest = bounds[len(bounds) - 2 - outer]
    return lowest, (len(table) - 1) / max(bounds[1 + outer] - lowest, LEAST_WIDTH)


@kernel
def _place(values, bounds, table, tally, room):
    """Place similarities (N,) among the bounds, and count them by place."""
    number, last = values.dtype.type, np.int32(len(table) - 1)
    lowest, per_unit = _bins_of(bounds, table)
    scale, most, least = number(per_unit), number(last), number(0)
    for i in range(len(values)):  # vectorised
        b = min(max((values[i] - lowest) * scale + number(1), least), most)
        room.places[i] = min(np.int32(b), last)

    for i in range(len(values)):
        value, place = values[i], np.uint64(table[np.uint64(room.places[i])])
        for _ in range(STEPS):
            place += np.uint64(bounds[place] >= value)
        room.slack[i] = min(value - bounds[place], bounds[place - np.uint64(1)] - value)
        room.places[i] = place
        tally[place] += 1


@kernel
def _passes(value, threshold, or_equal):
    return value > threshold or (or_equal and value == threshold)


@kernel
def _first_passed(cosines, first, last, value, or_equal):
    """First position in [first, last) whose threshold is below the value; `last` if none is."""
    while first < last:
        middle = (first + last) // 2
        if _passes(value, cosines[middle], or_equal):
            last = middle
        else:
            first = middle + 1
    return first


@kernel
def _first_passed_near(cosines, guess, value, or_equal):
    """As `_first_passed` of all, in few steps where the guess is close."""
    first, last, step = guess, guess, 1
    while first > 0 and _passes(value, cosines[first - 1], or_equal):
        last, first, step = first - 1, max(first - 1 - step, 0), 2 * step
    if first < guess:
        return _first_passed(cosines, first, last, value, or_equal)
    while last < len(cosines) and not _passes(value, cosines[last], or_equal):
        first, last, step = last + 1, min(last + step, len(cosines)), 2 * step
    return _first_passed(cosines, first, last, value, or_equal)


@kernel
def _decide(q, values, others, queries, gallery, thresholds, margin, exact, room, tally, levels):
    """Count the similarities of query q to gallery images `others` that are not placed for certain.

    All of them in one call, which costs more than most of what it does.
    """
    number, unsure = 0, 2 * margin if exact else margin
    for i in range(len(values)):
        room.unsure[number] = i
        number += room.slack[i] <= unsure

    cosines = thresholds.cosines[thresholds.offsets[q] : thresholds.offsets[q + 1]]
    tolerance, own = thresholds.tolerance, queries.rows[q]
    for i in room.unsure[:number]:
        guess, value = np.int64(room.places[i]) - 1, np.float64(values[i])
        tally[guess + 1] -= 1
        place = _first_passed_near(cosines, guess, value + margin, True)
        if place < len(cosines) and cosines[place] >= value - margin:
            if not exact:
                g = others[i]
                value = cosine(own, gallery.rows[g], queries.norms[q] * gallery.norms[g])
            reached = _first_passed_near(cosines, place, value + tolerance, True)
            place = _first_passed_near(cosines, reached, value - tolerance, False)
            if reached < place:
                levels[reached] += 1
                if place < len(cosines):
                    levels[place] -= 1
        tally[place + 1] += 1


@kernel
def count_rows(tile, queries, gallery, thresholds, room, counts):
    """Count the negatives of a Tile for the queries that are its rows.

    `queries` and `gallery` are Vectors, the latter in the order of the thresholds. Ahead and level
    of `counts`, (M,) each, are added to; they hold differences until `add_up` has been called.
    """
    exact, margin = tile.error == 0.0, thresholds.tolerance + tile.error
    for r in range(tile.height):
        q = queries.order[tile.row + r]
        part = slice(thresholds.offsets[q], thresholds.offsets[q + 1])
        ahead, levels = counts.ahead[part], counts.level[part]
        bounds, tally = room.bounds[: len(ahead) + 2], room.tally[: len(ahead) + 2]
        table = room.table[: BINS_EACH * len(ahead) + 1]
        first = min(max(thresholds.firsts[q] - tile.column, 0), tile.width)
        last = min(max(thresholds.lasts[q] - tile.column, first), tile.width)
        _fill(thresholds.cosines[part], bounds, table)
        tally[:] = 0

        for left, right in ((0, first), (last, tile.width)):
            for start in range(left, right, CHUNK):
                size, column = min(CHUNK, right - start), tile.column + start
                values = tile.values[r * tile.stride + start : r * tile.stride + start + size]
                _place(values, bounds, table, tally, room)
                others = gallery.order[column : column + size]
                rest = (queries, gallery, thresholds, margin, exact, room, tally, levels)
                _decide(q, values, others, *rest)
        for p in range(len(ahead)):
            ahead[p] += tally[p + 1]


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
