"""Compiled counting of similarities against thresholds, on all cores."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from metric_learning.retrieval.counting.bins import Bins
from metric_learning.retrieval.counting.cpu import kernels, many_positives
from metric_learning.retrieval.counting.cpu.histogram import count_negatives
from metric_learning.retrieval.counting.cpu.kernels import Counts
from metric_learning.retrieval.counting.cpu.many_positives import (
    Room,
    count_rows,
    make_room,
)
from metric_learning.retrieval.counting.cpu.products import (
    exact_ladder,
    ladder,
    multiply_by_torch,
)
from metric_learning.retrieval.counting.cpu.sorting import sort_descending
from metric_learning.retrieval.counting.cpu.tiles import Kept, Visitor, for_each_tile, wide
from metric_learning.retrieval.counting.cpu.vectors import (
    Tile,
    normalise,
    pair_cosines,
    prepare,
)
from metric_learning.retrieval.counting.thresholds import (
    MANY,
    MOST_UNDECIDED,
    NegativePairs,
    Share,
    Thresholds,
)

BLOCK_NUMBERS = 2**21  # of embeddings that are normalised at once for products of classes
# Similarities of which float64 computes one dimension more in the time of deciding one of them.
DIMENSIONS_DECIDED = 10_000
MOST_KEPT = 2**28  # numbers of a gallery whose factors are kept, in 4 bytes each


class CpuCounter:
    """A `Counter` of queries (Q, D), and a gallery (G, D) if it is another, on the CPU."""

    def __init__(self, queries: np.ndarray, gallery: np.ndarray | None) -> None:
        self.queries = prepare(queries)
        self.is_self_retrieval = gallery is None
        self.gallery = self.queries if gallery is None else prepare(gallery)
        # Factors of the gallery, about as large as it, for queries with many positives.
        is_large = is_mapped(self.gallery.rows) or self.gallery.rows.size > MOST_KEPT
        self.kept: Kept | None = None if is_large else {}
        self.kept_order: np.ndarray | None = None

    def pair_cosines(self, query_rows: np.ndarray, gallery_rows: np.ndarray) -> np.ndarray:
        """See Counter."""
        cosines = np.empty(len(query_rows))
        pair_cosines(self.queries, self.gallery, query_rows, gallery_rows, cosines)
        return cosines

    def block_cosines(self, query_rows: np.ndarray, gallery_rows: np.ndarray) -> np.ndarray:
        """See Counter."""
        queries = self.queries._replace(order=query_rows)
        gallery = self.gallery._replace(order=gallery_rows)
        size = max(1, BLOCK_NUMBERS // queries.rows.shape[1])
        sides = [np.empty((size, queries.rows.shape[1])) for _ in range(2)]
        block = np.empty((len(query_rows), len(gallery_rows)))

        for top in range(0, len(query_rows), size):
            bottom = min(top + size, len(query_rows))
            normalise(queries, top, bottom, sides[0])
            for left in range(0, len(gallery_rows), size):
                right = min(left + size, len(gallery_rows))
                normalise(gallery, left, right, sides[1])
                rows, columns = sides[0][: bottom - top], sides[1][: right - left]
                multiply_by_torch(rows, columns, block[top:bottom, left:right])
        return block

    def sort_descending(self, offsets: np.ndarray, values: np.ndarray) -> None:
        """See Counter."""
        sort_descending(offsets, values)

    def count(
        self, query_range: tuple[int, int], thresholds: Thresholds, share: Share
    ) -> tuple[np.ndarray, np.ndarray]:
        """See Counter; queries with few positives and those with many are counted differently."""
        counts = Counts(*np.zeros((2, len(thresholds.cosines)), np.int32))
        sizes = np.diff(thresholds.offsets)
        has_many = sizes > MANY

        if has_many.any():
            rows = np.flatnonzero(has_many)
            if not is_mapped(self.queries.rows):  # disks like to be read in order
                rows = rows[np.argsort(thresholds.firsts[rows], kind="stable")]
            self._count_many(rows, thresholds, share, counts)
        if ((sizes > 0) & ~has_many).any():
            few = thresholds.of(~has_many)
            places = np.repeat(~has_many, sizes)
            for total, part in zip(counts, self._count_few(query_range, few, share), strict=True):
                total[places] = part

        if share.size == 1:
            return counts.ahead, counts.level
        ahead, level = (share.add(count.astype(np.int64)) for count in counts)
        return ahead, level

    def _count_few(
        self, query_range: tuple[int, int], thresholds: Thresholds, share: Share
    ) -> tuple[np.ndarray, np.ndarray]:
        """Count all images; in self-retrieval of all queries by half of the similarities."""
        is_symmetric = self.is_self_retrieval and query_range == (0, len(self.queries.rows))
        queries, gallery = self.queries, self.gallery
        if is_symmetric and not is_mapped(queries.rows):  # disks like to be read in order
            queries = gallery = queries._replace(order=_by_worst_positive(thresholds))
        all_counts: list[Counts] = []

        def make_visitor() -> Visitor:
            counts = Counts(*np.zeros((2, len(thresholds.cosines)), np.int32))
            all_counts.append(counts)

            def visit(versions: Iterator[Tile], is_two_sided: bool) -> None:
                for tile in versions:
                    if kernels.undecided_share(tile, queries, thresholds) <= MOST_UNDECIDED:
                        break
                kernels.count_tile(tile, queries, gallery, thresholds, is_two_sided, counts)

            return visit

        columns = None if is_symmetric else gallery
        for_each_tile(queries, columns, query_range, make_visitor, share, ladder)
        ahead = np.array([counts.ahead for counts in all_counts]).sum(0, np.int64)
        level = np.array([counts.level for counts in all_counts]).sum(0, np.int64)
        if share.rank == 0:  # once for all processes
            positives_ahead, positives_level = thresholds.positives(self.pair_cosines)
            ahead -= positives_ahead
            level -= positives_level
        return ahead, level

    def _count_many(
        self, rows: np.ndarray, thresholds: Thresholds, share: Share, counts: Counts
    ) -> None:
        """Count the negatives of queries (B,) into the counts."""
        queries = self.queries._replace(order=rows)
        gallery = self.gallery._replace(order=thresholds.order)
        firsts, lasts = thresholds.firsts[rows], thresholds.lasts[rows]
        dim = queries.rows.shape[1]
        most_undecided = min(MOST_UNDECIDED, dim / DIMENSIONS_DECIDED)

        if self.kept and thresholds.order is not self.kept_order:
            self.kept.clear()
        self.kept_order = thresholds.order
        most = int(np.diff(thresholds.offsets).max())

        def make_visitor() -> Visitor:
            rooms: dict[Any, Room] = {}

            def visit(versions: Iterator[Tile], is_two_sided: bool) -> None:
                for tile in versions:
                    if many_positives.undecided_share(tile, queries, thresholds) <= most_undecided:
                        break
                dtype = tile.values.dtype
                if dtype not in rooms:
                    rooms[dtype] = make_room(most, dtype)
                count_rows(tile, queries, gallery, thresholds, rooms[dtype], counts)

            return visit

        def of_their_class(top: int, bottom: int) -> tuple[int, int]:
            return int(firsts[top:bottom].max()), int(lasts[top:bottom].min())

        every = 0, len(rows)
        for_each_tile(
            queries,
            gallery,
            every,
            make_visitor,
            share,
            exact_ladder,
            wide(dim),
            of_their_class,
            self.kept,
        )
        many_positives.add_up(rows, thresholds, counts)

    def count_negatives(self, pairs: NegativePairs, bins: Bins, share: Share) -> np.ndarray:
        """See Counter."""
        gallery = None if self.is_self_retrieval else self.gallery
        return count_negatives(self.queries, gallery, pairs, bins, share)


def is_mapped(array: np.ndarray) -> bool:
    """Whether an array, or the one that it is a view of, lies in a memory-mapped file."""
    owner: Any = array
    while isinstance(owner, np.ndarray):
        if isinstance(owner, np.memmap):
            return True
        owner = owner.base
    return False


def _by_worst_positive(thresholds: Thresholds) -> np.ndarray:
    """Order queries by the cosine of their worst positive, so that neighbours count alike."""
    is_asked = np.diff(thresholds.offsets) > 0
    worst = np.full(len(is_asked), np.inf)
    worst[is_asked] = thresholds.cosines[thresholds.offsets[1:][is_asked] - 1]
    return np.argsort(worst, kind="stable")
