"""Sorting of many rows of similarities, compiled (numba): in about linear time."""

from __future__ import annotations

import numpy as np

from metric_learning.retrieval.counting.cpu.jit import kernel

FEW = 64  # values that are sorted at once
BUCKETS_EACH = 4  # buckets per value
FULL = 32  # values of a bucket above which it is sorted by itself
LEAST_RANGE = 1e-12  # of values that are spread over buckets: their number in 1 stays finite


@kernel
def sort_descending(offsets, values):
    """Sort each query's part of `values` (M,) float64, the greatest first."""
    most = 0
    for q in range(len(offsets) - 1):
        most = max(most, offsets[q + 1] - offsets[q])
    spread, buckets = np.empty(most), np.empty(most, np.int32)
    ends = np.empty(BUCKETS_EACH * most, np.int32)

    for q in range(len(offsets) - 1):
        part = values[offsets[q] : offsets[q + 1]]
        if len(part) <= FEW:
            _sort(part)
        else:
            number = BUCKETS_EACH * len(part)
            _spread(part, buckets[: len(part)], ends[:number], spread)
            _insert(spread, part)


@kernel
def _sort(values):
    values.sort()
    values[:] = values[::-1].copy()


@kernel
def _spread(values, buckets, ends, out):
    """Write values to `out` by buckets of equal width, those of the greatest values first."""
    lowest, highest = values[0], values[0]
    for value in values:
        lowest, highest = min(lowest, value), max(highest, value)
    scale = (len(ends) - 1) / max(highest - lowest, LEAST_RANGE)

    ends[:] = 0
    for i in range(len(values)):  # vectorised
        buckets[i] = np.int32((highest - values[i]) * scale)
    for bucket in buckets:
        ends[np.uint64(bucket)] += 1

    place, fullest = 0, 0
    for b in range(len(ends)):
        size = ends[b]
        ends[b], place, fullest = place, place + size, max(fullest, size)
    for i in range(len(values)):
        bucket = np.uint64(buckets[i])
        out[np.uint64(ends[bucket])] = values[i]
        ends[bucket] += 1

    if fullest > FULL:
        start = 0
        for end in ends:
            if end - start > FULL:
                _sort(out[start:end])
            start = end


@kernel
def _insert(values, out):
    """Write values that are nearly sorted to `out`, sorted, the greatest first."""
    for i in range(len(out)):
        value, place = values[i], np.uint64(i)
        while place > 0 and out[place - np.uint64(1)] < value:
            out[place] = out[place - np.uint64(1)]
            place -= np.uint64(1)
        out[place] = value
