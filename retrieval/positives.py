"""Which gallery images are the positives of which query, and how similar they are."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from metric_learning.retrieval.counting.thresholds import MANY, Counter


class Positives:
    """The positives of Q queries: the gallery images of the same class, the query itself left out.

    Args:
        query_labels: (Q,) int64.
        gallery_labels: (G,) int64.
        own_rows: (Q,) int64, the gallery row that is the query itself, -1: none is; None: no query
            is in the gallery.
    """

    def __init__(
        self, query_labels: np.ndarray, gallery_labels: np.ndarray, own_rows: np.ndarray | None
    ) -> None:
        self.by_label = np.argsort(gallery_labels, kind="stable")
        ordered = gallery_labels[self.by_label]
        self.firsts = np.searchsorted(ordered, query_labels, side="left")
        self.lasts = np.searchsorted(ordered, query_labels, side="right")
        self.own_rows = np.full(len(query_labels), -1) if own_rows is None else own_rows
        self.counts = self.lasts - self.firsts - (self.own_rows >= 0)
        self.offsets = np.concatenate([[0], np.cumsum(self.counts)])

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

    def cosines(self, counter: Counter, start: int, stop: int) -> np.ndarray:
        """Return the cosines of all positives of queries start..stop, of each the best first.

        (M,) float64. Positives that are many are those of other queries as well: their cosines are
        products of whole classes.
        """
        cosines = np.empty(self.offsets[stop] - self.offsets[start])
        queries, counts = np.arange(start, stop), self.counts[start:stop]
        has_many = counts > MANY
        few = counter.pair_cosines(*self.pairs(queries[~has_many]))
        counter.sort_descending(np.append(0, np.cumsum(counts[~has_many])), few)
        cosines[np.repeat(~has_many, counts)] = few

        for first in np.unique(self.firsts[start:stop][has_many]):
            asking = queries[has_many & (self.firsts[start:stop] == first)]
            block = self._class_cosines(counter, asking)
            for query, row in zip(asking, block, strict=True):
                place = self.offsets[query] - self.offsets[start]
                cosines[place : place + self.counts[query]] = row[: self.counts[query]]
        return cosines

    def _class_cosines(self, counter: Counter, queries: np.ndarray) -> np.ndarray:
        """Cosines (B, P) of queries of one class with all of it, best first, themselves last."""
        columns = self.by_label[self.firsts[queries[0]] : self.lasts[queries[0]]]  # ascending
        negated = counter.block_cosines(queries, columns)
        np.negative(negated, out=negated)
        inside = np.flatnonzero(self.own_rows[queries] >= 0)
        places = np.searchsorted(columns, self.own_rows[queries[inside]])
        negated[inside, places] = np.inf
        negated.sort(axis=1)
        cosines: np.ndarray = np.negative(negated, out=negated)
        return cosines
