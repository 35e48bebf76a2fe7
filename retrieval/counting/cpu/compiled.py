"""Compiled counting of similarities against thresholds, on all cores."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from metric_learning.retrieval.counting.bins import Bins
from metric_learning.retrieval.counting.cpu import kernels
from metric_learning.retrieval.counting.cpu.histogram import count_negatives
from metric_learning.retrieval.counting.cpu.kernels import Counts
from metric_learning.retrieval.counting.cpu.many_positives import add_up, make_guides
from metric_learning.retrieval.counting.cpu.products import ladder
from metric_learning.retrieval.counting.cpu.tiles import Visitor, for_each_tile
from metric_learning.retrieval.counting.cpu.vectors import (
    Tile,
    pair_cosines,
    prepare,
    sort_descending,
)
from metric_learning.retrieval.counting.thresholds import (
    MOST_UNDECIDED,
    NegativePairs,
    Share,
    Thresholds,
)


class CpuCounter:
    """A `Counter` of queries (Q, D), and a gallery (G, D) if it is another, on the CPU."""

    def __init__(self, queries: np.ndarray, gallery: np.ndarray | None) -> None:
        self.queries = prepare(queries)
        self.is_self_retrieval = gallery is None
        self.gallery = self.queries if gallery is None else prepare(gallery)

    def pair_cosines(self, query_rows: np.ndarray, gallery_rows: np.ndarray) -> np.ndarray:
        """See Counter."""
        cosines = np.empty(len(query_rows))
        pair_cosines(self.queries, self.gallery, query_rows, gallery_rows, cosines)
        return cosines

    def sort_descending(self, offsets: np.ndarray, values: np.ndarray) -> None:
        """See Counter."""
        sort_descending(offsets, values)

    def count(
        self, query_range: tuple[int, int], thresholds: Thresholds, share: Share
    ) -> tuple[np.ndarray, np.ndarray]:
        """See Counter; in self-retrieval of all queries half of the similarities are computed."""
        is_symmetric = self.is_self_retrieval and query_range == (0, len(self.queries.rows))
        queries, gallery = self.queries, self.gallery
        if is_symmetric and not is_mapped(queries.rows):  # disks like to be read in order
            queries = gallery = queries._replace(order=_by_worst_positive(thresholds))

        guides = make_guides(thresholds)
        all_counts: list[Counts] = []

        def make_visitor() -> Visitor:
            counts = Counts(*np.zeros((2, len(thresholds.cosines)), np.int32))
            all_counts.append(counts)

            def visit(versions: Iterator[Tile], is_two_sided: bool) -> None:
                for tile in versions:
                    if kernels.undecided_share(tile, queries, thresholds) <= MOST_UNDECIDED:
                        break
                kernels.count_tile(tile, queries, gallery, thresholds, guides, is_two_sided, counts)

            return visit

        columns = None if is_symmetric else gallery
        for_each_tile(queries, columns, query_range, make_visitor, share, ladder)

        for counts in all_counts:
            add_up(thresholds, counts)
        ahead, level = (np.zeros(len(thresholds.cosines), np.int64) for _ in range(2))
        for counts in all_counts:
            ahead += counts.ahead
            level += counts.level
        return share.add(ahead), share.add(level)

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
