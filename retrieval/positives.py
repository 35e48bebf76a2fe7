"""Which gallery images are the positives of which query, and how similar they are."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from metric_learning.retrieval.counting.thresholds import MANY, Counter
from metric_learning.retrieval.groups import Groups


class Positives:
    """The positives of Q queries: the gallery images of the same class, the query itself left out.

    Those that share the query's group are among them here, so that nobody takes them for negatives;
    `is_ignored` tells which they are.

    Args:
        query_labels: (Q,) int64.
        gallery_labels: (G,) int64.
        own_rows: (Q,) int64, the gallery row that is the query itself, -1: none is; None: no query
            is in the gallery.
        groups: see `retrieval.groups`; None: there are none.
    """

    def __init__(
        self,
        query_labels: np.ndarray,
        gallery_labels: np.ndarray,
        own_rows: np.ndarray | None,
        groups: Groups | None = None,
    ) -> None:
        self.groups = groups
        self.by_label = np.argsort(gallery_labels, kind="stable")
        ordered = gallery_labels[self.by_label]
        self.firsts = np.searchsorted(ordered, query_labels, side="left")
        self.lasts = np.searchsorted(ordered, query_labels, side="right")
        self.own_rows = np.full(len(query_labels), -1) if own_rows is None else own_rows
        self.counts = self.lasts - self.firsts - (self.own_rows >= 0)
        self.offsets = np.concatenate([[0], np.cumsum(self.counts)])
        self.room = np.empty(0)

    def pieces(self, most: int) -> Iterator[tuple[int, int]]:
        """Cut the queries into ranges of at most so many positives, or of one query."""
        start, num_queries = 0, len(self.counts)
        while start < num_queries:
            stop = int(np.searchsorted(self.offsets, self.offsets[start] + most, side="right")) - 1
            stop = min(max(stop, start + 1), num_queries)
            yield start, stop
            start = stop

    def pairs(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return query row and gallery row of all positives of some queries (B,)."""
        counts = self.lasts[queries] - self.firsts[queries]
        rows = np.repeat(queries, counts)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        columns = self.by_label[np.repeat(self.firsts[queries], counts) + within]
        is_other = self.own_rows[rows] != columns
        return rows[is_other], columns[is_other]

    def is_ignored(self, queries: np.ndarray) -> np.ndarray | None:
        """Whether the query's group rules out each of `pairs`, (M,) bool; None: there are none."""
        return None if self.groups is None else self.groups.are_same(*self.pairs(queries))

    def cosines(
        self, counter: Counter, start: int, stop: int
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the cosines of all positives of queries start..stop, of each the best first.

        (M,) float64, in memory that the next call writes to, and which are ignored, (M,) bool; None
        where there are no groups. Positives that are many are those of other queries as well: their
        cosines are products of whole classes.
        """
        num_positives = self.offsets[stop] - self.offsets[start]
        if len(self.room) < num_positives:
            self.room = np.empty(num_positives)
        cosines = self.room[:num_positives]
        queries, counts = np.arange(start, stop), self.counts[start:stop]
        offsets = self.offsets[start : stop + 1] - self.offsets[start]
        has_many = counts > MANY
        pairs = self.pairs(queries[~has_many])
        cosines[np.repeat(~has_many, counts)] = counter.pair_cosines(*pairs)

        for first in np.unique(self.firsts[start:stop][has_many]):
            asking = queries[has_many & (self.firsts[start:stop] == first)]
            columns = self.by_label[first : self.lasts[asking[0]]]  # ascending
            block = counter.block_cosines(asking, columns)
            own_places = np.searchsorted(columns, self.own_rows[asking])
            for query, place, row in zip(asking, own_places, block, strict=True):
                part = cosines[offsets[query - start] : offsets[query - start + 1]]
                if self.own_rows[query] < 0:
                    part[:] = row
                else:
                    part[:place], part[place:] = row[:place], row[place + 1 :]
        is_ignored = self.is_ignored(queries)
        if is_ignored is None:
            counter.sort_descending(offsets, cosines)
            return cosines, None
        order = np.lexsort((-cosines, np.repeat(queries, counts)))
        cosines[:] = cosines[order]
        return cosines, is_ignored[order]
