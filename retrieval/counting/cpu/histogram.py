"""Histogram of the similarities of negative pairs on the CPU, compiled (numba), on all cores."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from metric_learning.retrieval.counting.bins import NUM_BINS, Bins
from metric_learning.retrieval.counting.cpu.jit import kernel
from metric_learning.retrieval.counting.cpu.products import FLOAT64, Product, fastest_float32
from metric_learning.retrieval.counting.cpu.tiles import Visitor, for_each_tile
from metric_learning.retrieval.counting.cpu.vectors import Tile, Vectors
from metric_learning.retrieval.counting.thresholds import NegativePairs, Share


def count_negatives(
    queries: Vectors, gallery: Vectors | None, pairs: NegativePairs, bins: Bins, share: Share
) -> np.ndarray:
    """Count the pairs of two classes by similarity: (NUM_BINS,) int64 of this process.

    The orders of `pairs` take the place of those of queries and gallery, which is None where the
    queries are the gallery. Only bins that need it are given similarities in float64.
    """
    queries = queries._replace(order=pairs.query_order)
    gallery = None if gallery is None else gallery._replace(order=pairs.gallery_order)
    histograms: list[np.ndarray] = []

    def make_visitor() -> Visitor:
        counts = np.zeros(NUM_BINS, np.int64)
        histograms.append(counts)

        def visit(versions: Iterator[Tile], is_two_sided: bool) -> None:
            tile = next(versions)
            number = tile.values.dtype.type  # a mixture of types would be slow
            centre, scale = number(bins.centre), number(1 / bins.width)
            # A pair counts once, not from both sides.
            _count_tile(tile, pairs.firsts, pairs.lasts, centre, scale, counts)

        return visit

    def choose_products() -> list[Product]:
        return [FLOAT64 if bins.need_float64 else fastest_float32()]

    every = 0, len(queries.rows)
    for_each_tile(queries, gallery, every, make_visitor, share, choose_products)
    counts: np.ndarray = np.sum(histograms, axis=0)
    return counts


@kernel
def _count_tile(tile, firsts, lasts, centre, scale, counts):
    """Count a tile's similarities, of each row those before `firsts` and from `lasts` on."""
    bins = np.empty(tile.width, np.int32)
    for r in range(tile.height):
        start = r * tile.stride
        first = min(max(firsts[tile.row + r] - tile.column, 0), tile.width)
        last = min(max(lasts[tile.row + r] - tile.column, 0), tile.width)
        _count(tile.values[start : start + first], centre, scale, bins, counts)
        _count(tile.values[start + last : start + tile.width], centre, scale, bins, counts)


@kernel
def _count(values, centre, scale, bins, counts):
    """Count values by their bins; these are computed first, as only that loop is vectorised."""
    half = np.int32(len(counts) // 2)
    for i in range(len(values)):
        nearest = np.rint((values[i] - centre) * scale)
        bins[i] = np.int32(min(max(nearest, -half), half)) + half
    for i in range(len(values)):
        counts[bins[i]] += 1
