"""Exact ranks of every query's positives, without a matrix of all pairs and without sorting it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from metric_learning.retrieval.counting.choose import choose_counter
from metric_learning.retrieval.counting.thresholds import Counter, Share, Thresholds

TIE_TOLERANCE = 1e-9  # similarities this close are equal
BYTES_PER_POSITIVE = 80  # held while ranks are counted, about
LEAST_BYTES = 2**28  # that may always be used for them


@dataclass(frozen=True)
class Ranks:
    """Ranks of all positives of all queries that have one."""

    # (M,) int64, one-based, ascending within a query; the positives of all queries. A negative that
    # ties with a positive stands before it
    ranks: npt.NDArray[np.int64]
    # (M,) int64, the same where a negative that ties stands behind
    untied_ranks: npt.NDArray[np.int64]
    # (Q + 1,) int64; query i's ranks are `ranks[offsets[i]:offsets[i + 1]]`
    offsets: npt.NDArray[np.int64]
    queries: npt.NDArray[np.int64]  # (Q,) int64, the row of each query among all query embeddings

    @property
    def first(self) -> npt.NDArray[np.int64]:
        """Rank of each query's best positive, (Q,) int64."""
        return self.ranks[self.offsets[:-1]]

    @property
    def last(self) -> npt.NDArray[np.int64]:
        """Rank of each query's worst positive, (Q,) int64."""
        return self.ranks[self.offsets[1:] - 1]

    @property
    def num_positives(self) -> npt.NDArray[np.int64]:
        """Number of positives of each query, (Q,) int64."""
        return np.diff(self.offsets)


def iterate_ranks(
    queries: np.ndarray,
    query_labels: np.ndarray,
    gallery: np.ndarray | None,
    gallery_labels: np.ndarray,
    device: str | torch.device = "cpu",
    share: Share | None = None,
    own_rows: np.ndarray | None = None,
) -> Iterator[Ranks]:
    """Rank each query's positives by cosine similarity in the gallery, exactly.

    - The rank of a positive is 1 + the negatives before it + the positives before it.
    - Similarities are those of the given embeddings in float64. A negative stands before a positive
      if its similarity is at least the positive's minus 1e-9: ties count against the query.
    - In self-retrieval a query is left out of its gallery by its row, never by its similarity, so
      that duplicates of it are ordinary gallery images.
    - A zero embedding has similarity 0 to everything.
    - Of a gallery that holds some of the queries, `own_rows` (Q,) int64 tells where: a query is
      left out of it by that row, -1: it is not there.

    Most comparisons are decided by tiles of int16 or float32 whose error is bounded; those that
    come closer to a threshold are decided again in float64. So the ranks do not depend on chunks,
    threads, device, or how many processes share the work, as far as float64 tells a difference of
    similarities from 1e-9. Queries and gallery are as `retrieval.inputs.checked_sets` returns them.

    Yields:
        Ranks of consecutive queries: of all at once, or of as many as fit into as much memory as
        the embeddings take. Cost: O(Q G D) time; half of it in self-retrieval on the CPU, if all
        queries come at once.
    """
    share = share or Share()
    counter = choose_counter(queries, gallery, device)
    if gallery is None:
        own_rows = np.arange(len(queries))
    positives = _Positives(query_labels, gallery_labels, own_rows)
    budget = max(LEAST_BYTES, queries.nbytes // 2) // BYTES_PER_POSITIVE
    for start, stop in positives.pieces(budget):
        yield _rank_queries(counter, positives, start, stop, share)


class _Positives:
    """Which gallery images are the positives of which query."""

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

    def pairs(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Return query row and gallery row of all positives of queries start..stop."""
        own_rows = self.own_rows[start:stop]
        counts = self.counts[start:stop] + (own_rows >= 0)
        rows = np.repeat(np.arange(start, stop), counts)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        columns = self.by_label[np.repeat(self.firsts[start:stop], counts) + within]
        is_other = own_rows[rows - start] != columns
        return rows[is_other], columns[is_other]


def _rank_queries(
    counter: Counter, positives: _Positives, start: int, stop: int, share: Share
) -> Ranks:
    rows, columns = positives.pairs(start, stop)
    first, last = positives.offsets[[start, stop]]
    offsets = np.clip(positives.offsets, first, last) - first
    cosines = counter.pair_cosines(rows, columns)
    counter.sort_descending(offsets, cosines)

    thresholds = Thresholds(
        offsets,
        cosines,
        TIE_TOLERANCE,
        positives.by_label,
        positives.firsts,
        positives.lasts,
        positives.own_rows,
    )
    ahead, level = counter.count((start, stop), thresholds, share)
    return _ranks_of_counts(start, offsets[start : stop + 1], ahead, level)


def ranks_of_similarities(
    chunks: Iterable[tuple[slice, np.ndarray]],
    query_labels: np.ndarray,
    gallery_labels: np.ndarray,
    own_rows: np.ndarray | None,
) -> Iterator[Ranks]:
    """Rank each query's positives by similarities that are no cosines, as `iterate_ranks` does.

    Each chunk is rows of B consecutive queries and their similarities (B, G) float64.
    """
    positives = _Positives(query_labels, gallery_labels, own_rows)
    for chunk, similarities in chunks:
        rows, columns = positives.pairs(chunk.start, chunk.stop)
        offsets = positives.offsets[chunk.start : chunk.stop + 1] - positives.offsets[chunk.start]
        ahead, level = (np.empty(len(rows), np.int64) for _ in range(2))

        for i, row in enumerate(similarities):
            part = slice(offsets[i], offsets[i + 1])
            is_negative = np.ones(len(row), bool)
            is_negative[columns[part]] = False
            if positives.own_rows[chunk.start + i] >= 0:
                is_negative[positives.own_rows[chunk.start + i]] = False
            thresholds = np.sort(row[columns[part]])[::-1]
            ahead[part], level[part] = _count_row(row[is_negative], thresholds)
        yield _ranks_of_counts(chunk.start, offsets, ahead, level)


def _count_row(similarities: np.ndarray, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count the similarities (G,) that are ahead of each threshold, and level with it."""
    if len(thresholds) == 0:
        return thresholds, thresholds
    candidates = np.sort(similarities[similarities >= thresholds[-1] - TIE_TOLERANCE])
    passed = np.searchsorted(candidates, thresholds + TIE_TOLERANCE, side="right")
    reached = np.searchsorted(candidates, thresholds - TIE_TOLERANCE, side="left")
    return len(candidates) - passed, passed - reached


def _ranks_of_counts(
    start: int, offsets: np.ndarray, ahead: np.ndarray, level: np.ndarray
) -> Ranks:
    """Make ranks of how many negatives are ahead of each positive, and level with it, (M,) each.

    Query `start + i` has the positives offsets[i]:offsets[i + 1], best first.
    """
    counts = np.diff(offsets)
    before = np.arange(len(ahead)) - np.repeat(offsets[:-1], counts) + 1
    return Ranks(
        ranks=before + ahead + level,
        untied_ranks=before + ahead,
        offsets=np.concatenate([[0], np.cumsum(counts[counts > 0])]),
        queries=np.flatnonzero(counts) + start,
    )
