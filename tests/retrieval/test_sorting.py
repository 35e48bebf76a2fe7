"""Rows of similarities are sorted as NumPy sorts them."""

import numpy as np
import pytest

from metric_learning.retrieval.counting.by_torch import TorchCounter
from metric_learning.retrieval.counting.cpu.sorting import FEW, sort_descending

KINDS = ["random", "equal", "few values", "far outliers", "two clusters", "tiny range", "sorted"]
SIZES = [0, 1, 2, FEW, FEW + 1, 0, 1000, 3000]


def make_values(kind, size, rng):
    values = rng.standard_normal(size)
    if kind == "equal":
        values[:] = 0.5
    if kind == "few values":
        values = np.rint(values)
    if kind == "far outliers":
        values[::500] = 1e6
    if kind == "two clusters":  # of which each fills a bucket
        values = (values > 0) + 1e-9 * rng.standard_normal(size)
    if kind == "tiny range":
        values *= 1e-17
    if kind == "sorted":
        values.sort()
    return values


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("by_torch", [False, True])
def test_each_part_is_sorted_by_itself(kind, by_torch):
    rng = np.random.default_rng(0)
    parts = [make_values(kind, size, rng) for size in SIZES]
    values, offsets = np.concatenate(parts), np.concatenate([[0], np.cumsum(SIZES)])
    sort = TorchCounter.sort_descending if by_torch else lambda _, *data: sort_descending(*data)
    sort(None, offsets, values)
    assert np.array_equal(values, np.concatenate([np.sort(part)[::-1] for part in parts]))
