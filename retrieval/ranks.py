"""Exact ranks of every query's positives, without a matrix of all pairs and without sorting it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from metric_learning.retrieval.counting.choose import choose_counter
from metric_learning.retrieval.counting.thresholds import Counter, Share, Thresholds
from metric_learning.retrieval.groups import Groups
from metric_learning.retrieval.positives import Positives

TIE_TOLERANCE = 1e-9  # similarities this close are equal
BYTES_PER_POSITIVE = 40  # held while ranks are counted, about
LEAST_BYTES = 2**27  # that may always be used for them


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
    groups: Groups | None = None,
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
    - Images of the query's class and group are left out of its ranking, see `retrieval.groups`.

    Most comparisons are decided by tiles of int16 or float32 whose error is bounded; those that
    come closer to a threshold are decided again in float64. So the ranks do not depend on chunks,
    threads, device, or how many processes share the work, as far as float64 tells a difference of
    similarities from 1e-9. Queries and gallery are as `retrieval.inputs.checked_sets` returns them.

    Yields:
        Ranks of consecutive queries: of all at once, or of as many as fit into as much memory as
        the embeddings take; where queries have many positives, the CPU keeps a copy of a gallery in
        memory, in 4 bytes per number, up to 1 GiB. Cost: O(Q G D) time; half of it in
        self-retrieval on the CPU, if all queries come at once.
    """
    share = share or Share()
    counter = choose_counter(queries, gallery, device)
    if gallery is None:
        own_rows = np.arange(len(queries))
    positives = Positives(query_labels, gallery_labels, own_rows, groups)
    each = BYTES_PER_POSITIVE * (1 if groups is None else 2)
    budget = max(LEAST_BYTES, queries.nbytes // 2) // each
    for start, stop in positives.pieces(budget):
        yield _rank_queries(counter, positives, start, stop, share)


def _rank_queries(
    counter: Counter, positives: Positives, start: int, stop: int, share: Share
) -> Ranks:
    first, last = positives.offsets[[start, stop]]
    offsets = np.clip(positives.offsets, first, last) - first
    cosines, is_ignored = positives.cosines(counter, start, stop)
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
    return _ranks_of_counts(start, offsets[start : stop + 1], ahead, level, is_ignored)


def ranks_of_similarities(
    chunks: Iterable[tuple[slice, np.ndarray]],
    query_labels: np.ndarray,
    gallery_labels: np.ndarray,
    own_rows: np.ndarray | None,
    groups: Groups | None = None,
) -> Iterator[Ranks]:
    """Rank each query's positives by similarities that are no cosines, as `iterate_ranks` does.

    Each chunk is rows of B consecutive queries and their similarities (B, G) float64.
    """
    positives = Positives(query_labels, gallery_labels, own_rows, groups)
    for chunk, similarities in chunks:
        rows, columns = positives.pairs(np.arange(chunk.start, chunk.stop))
        offsets = positives.offsets[chunk.start : chunk.stop + 1] - positives.offsets[chunk.start]
        ahead, level = (np.empty(len(rows), np.int64) for _ in range(2))
        is_ignored = positives.is_ignored(np.arange(chunk.start, chunk.stop))

        for i, row in enumerate(similarities):
            part = slice(offsets[i], offsets[i + 1])
            is_negative = np.ones(len(row), bool)
            is_negative[columns[part]] = False
            if positives.own_rows[chunk.start + i] >= 0:
                is_negative[positives.own_rows[chunk.start + i]] = False
            order = np.argsort(row[columns[part]])[::-1]
            thresholds = row[columns[part]][order]
            ahead[part], level[part] = _count_row(row[is_negative], thresholds)
            if is_ignored is not None:
                is_ignored[part] = is_ignored[part][order]
        yield _ranks_of_counts(chunk.start, offsets, ahead, level, is_ignored)


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
    ahead: np.ndarray,
    level: np.ndarray,
    is_ignored: np.ndarray | None,
) -> Ranks:
    """Make ranks of how many negatives are ahead of each positive, and level with it, (M,) each.

    Query `start + i` has the positives offsets[i]:offsets[i + 1], best first. Those that are
    ignored, (M,) bool or None, have no rank and take no place.
    """
    if is_ignored is not None:
        kept = ~is_ignored
        offsets = np.concatenate([[0], np.cumsum(kept)])[offsets - offsets[0]]
        ahead, level = ahead[kept], level[kept]

    counts = np.diff(offsets)
    asked = np.flatnonzero(counts)
    untied_ranks = np.ones(len(ahead), np.int64)  # each is one more than that before it, but for
    untied_ranks[offsets[asked[1:]]] -= counts[asked[:-1]]  # the first of a query
    np.cumsum(untied_ranks, out=untied_ranks)
    untied_ranks += ahead
    return Ranks(
        ranks=untied_ranks + level if level.any() else untied_ranks,
        untied_ranks=untied_ranks,
        offsets=np.concatenate([[0], np.cumsum(counts[asked])]),
        queries=asked + start,
    )
