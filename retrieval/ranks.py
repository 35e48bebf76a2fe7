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
BYTES_PER_POSITIVE = 64  # held while ranks are counted, about
BYTES_PER_THREAD = 8  # held in addition, per positive and thread
LEAST_BYTES = 2**26  # that may always be used for them


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
    bytes_each = BYTES_PER_POSITIVE + BYTES_PER_THREAD * torch.get_num_threads()
    budget = max(LEAST_BYTES, queries.nbytes // 2) // bytes_each
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
        self.own_rows = np.full(len(query_labels), -1) if own_rows is None else own_rows
        counts = np.searchsorted(ordered, query_labels, side="right") - self.firsts
        self.counts = counts - (self.own_rows >= 0)
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
    thresholds = Thresholds(offsets, cosines, TIE_TOLERANCE)
    ahead, level = counter.count((start, stop), thresholds, share)
    own = None

    inside = np.flatnonzero(positives.own_rows[start:stop] >= 0)
    if len(inside):
        cosines_of_own = np.full(stop - start, -np.inf)
        own_rows = positives.own_rows[start + inside]
        cosines_of_own[inside] = counter.pair_cosines(start + inside, own_rows)
        own = cosines_of_own[rows - start]
    return _ranks_of_counts(start, offsets[start : stop + 1], cosines, ahead, level, own)


def ranks_of_similarities(
    chunks: Iterable[tuple[slice, np.ndarray]],
    query_labels: np.ndarray,
    gallery_labels: np.ndarray,
    self_retrieval: bool,
) -> Iterator[Ranks]:
    """Rank each query's positives by similarities that are no cosines, as `iterate_ranks` does.

    Each chunk is rows of B consecutive queries and their similarities (B, G) float64. In
    self-retrieval query i is gallery image i and no neighbour of itself.
    """
    own_rows = np.arange(len(query_labels)) if self_retrieval else None
    positives = _Positives(query_labels, gallery_labels, own_rows)
    for chunk, similarities in chunks:
        rows, columns = positives.pairs(chunk.start, chunk.stop)
        offsets = positives.offsets[chunk.start : chunk.stop + 1] - positives.offsets[chunk.start]
        thresholds = similarities[rows - chunk.start, columns]
        ahead, level = (np.empty(len(thresholds), np.int64) for _ in range(2))
        for i, row in enumerate(similarities):
            part = slice(offsets[i], offsets[i + 1])
            thresholds[part] = np.sort(thresholds[part])[::-1]
            ahead[part], level[part] = _count_row(row, thresholds[part])
        own = similarities[rows - chunk.start, rows] if self_retrieval else None
        yield _ranks_of_counts(chunk.start, offsets, thresholds, ahead, level, own)


def _count_row(similarities: np.ndarray, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count the similarities (G,) that are ahead of each threshold, and level with it."""
    if len(thresholds) == 0:
        return thresholds, thresholds
    candidates = np.sort(similarities[similarities >= thresholds[-1] - TIE_TOLERANCE])
    passed = np.searchsorted(candidates, thresholds + TIE_TOLERANCE, side="right")
    reached = np.searchsorted(candidates, thresholds - TIE_TOLERANCE, side="left")
    return len(candidates) - passed, passed - reached


def _ranks_of_counts(
    start: int,
    offsets: np.ndarray,
    thresholds: np.ndarray,
    ahead: np.ndarray,
    level: np.ndarray,
    own: np.ndarray | None,
) -> Ranks:
    """Take the positives and the query itself out of the counts of consecutive queries.

    Query `start + i` has the positives offsets[i]:offsets[i + 1], whose similarities are the
    thresholds (M,), best first. `ahead` and `level` count all gallery images; `own` (M,) is the
    query's similarity to itself, -inf if it is not in the gallery, None if none is.
    """
    counts = np.diff(offsets)
    positives_ahead, positives_reached = _compare_positives(offsets, thresholds)
    before = np.arange(len(thresholds)) - np.repeat(offsets[:-1], counts) + 1
    untied_ranks = before + ahead - positives_ahead
    ranks = before + ahead + level - positives_reached
    if own is not None:
        untied_ranks -= own > thresholds + TIE_TOLERANCE
        ranks -= own >= thresholds - TIE_TOLERANCE
    return Ranks(
        ranks=ranks,
        untied_ranks=untied_ranks,
        offsets=np.concatenate([[0], np.cumsum(counts[counts > 0])]),
        queries=np.flatnonzero(counts) + start,
    )


def _compare_positives(
    offsets: np.ndarray, thresholds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Count, per positive, the positives of its query ahead of it and those ahead or level."""
    queries = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    ahead = np.arange(len(thresholds)) - offsets[queries]
    reached = ahead + 1
    is_close = (np.diff(queries) == 0) & (-np.diff(thresholds) < 2 * TIE_TOLERANCE)
    for query in np.unique(queries[:-1][is_close]):
        own = slice(offsets[query], offsets[query + 1])
        ascending = thresholds[own][::-1]
        bounds = thresholds[own] + TIE_TOLERANCE, thresholds[own] - TIE_TOLERANCE
        ahead[own] = len(ascending) - np.searchsorted(ascending, bounds[0], side="right")
        reached[own] = len(ascending) - np.searchsorted(ascending, bounds[1], side="left")
    return ahead, reached
