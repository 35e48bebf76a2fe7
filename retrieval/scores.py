"""Scores of single queries, derived from the ranks of their positives.

recall@K: 1 where a positive is among the first K (also known as CMC at rank K). precision@K: share
of positives among the first K. map@r and r_precision: A Metric Learning Reality Check (Musgrave et
al. 2020), section 3.2, https://arxiv.org/abs/2003.08505. map: mean average precision over all
positives. mrr: 1 / rank of the best positive. minp: positives / rank of the worst positive, the
inverse negative penalty of AGW (Ye et al. 2021), section 4, https://arxiv.org/abs/2001.04193.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from metric_learning.retrieval.ranks import Ranks
from metric_learning.retrieval.ties import expected_scores

TIES = ("pessimistic", "expected")


class Columns(Mapping[str, np.ndarray]):
    """Metric -> (Q,) float64; recall@K, of which there may be thousands, is computed on demand.

    It follows from the first rank (Q,) of each query, but for queries `tied` (T,), whose recalls
    (T, K) at all of `ks` are given; `stored` has the other metrics.
    """

    def __init__(
        self,
        first_rank: np.ndarray,
        ks: Sequence[int],
        stored: dict[str, np.ndarray],
        tied: np.ndarray,
        tied_recalls: np.ndarray,
    ) -> None:
        self.first_rank, self.stored = first_rank, stored
        self.places = {f"recall@{k}": place for place, k in enumerate(ks)}
        self.ks, self.tied, self.tied_recalls = list(ks), tied, tied_recalls

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.places:
            return self.stored[name]
        place = self.places[name]
        recall = (self.first_rank <= self.ks[place]).astype(np.float64)
        recall[self.tied] = self.tied_recalls[:, place]
        return recall

    def __iter__(self) -> Iterator[str]:
        yield from self.places
        yield from self.stored

    def __len__(self) -> int:
        return len(self.places) + len(self.stored)


@dataclass(frozen=True)
class QueryScores:
    """The scores of each query that has a positive."""

    rows: np.ndarray  # (Q,) int64, the row of each query among all query embeddings
    labels: np.ndarray  # (Q,) int64
    first_rank: np.ndarray  # (Q,) int64, rank of the query's best positive, ties counted against it
    num_positives: np.ndarray  # (Q,) int64
    # metric -> (Q,) float64; their means are the metrics of the data set
    columns: Mapping[str, np.ndarray]
    queries_without_positive: int  # number of queries left out
    gallery: int  # number of images in the gallery, the query itself included

    def __len__(self) -> int:
        return len(self.rows)


def score_ranks(
    parts: Iterable[Ranks],
    labels: np.ndarray,
    gallery: int,
    ks: Sequence[int],
    precision_ks: Sequence[int] = (),
    ties: str = "pessimistic",
) -> QueryScores:
    """Compute every retrieval metric of this module per query; of none where none has a positive.

    The parts are ranks of consecutive queries, the labels (N,) int64 those of all that query. Every
    K is at least 1. Ties: "pessimistic" puts a negative that ties with a positive before it;
    "expected" takes the mean over all orders of tied images.
    """
    rows, first_ranks, counts, stored, tied, recalls = [], [], [], [], [], []
    num_scored = 0
    for ranks in parts:
        scores = _pessimistic_scores(ranks, precision_ks)
        if ties == "expected":
            for query, expected in _expected_scores(ranks, ks, precision_ks):
                tied.append(num_scored + query)
                recalls.append([expected[f"recall@{k}"] for k in ks])
                for name in scores:
                    scores[name][query] = expected[name]
        rows.append(ranks.queries)
        first_ranks.append(ranks.first)
        counts.append(ranks.num_positives)
        stored.append(scores)
        num_scored += len(ranks.queries)

    scored, first_rank = np.concatenate(rows), np.concatenate(first_ranks)
    metrics = {name: np.concatenate([part[name] for part in stored]) for name in stored[0]}
    tied_recalls = np.array(recalls, dtype=np.float64).reshape(len(tied), len(ks))
    return QueryScores(
        rows=scored,
        labels=labels[scored],
        first_rank=first_rank,
        num_positives=np.concatenate(counts),
        columns=Columns(first_rank, ks, metrics, np.array(tied, dtype=np.int64), tied_recalls),
        queries_without_positive=len(labels) - len(scored),
        gallery=gallery,
    )


def _expected_scores(
    ranks: Ranks, ks: Sequence[int], precision_ks: Sequence[int]
) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield each query with a positive that ties with a negative, and its expected scores."""
    is_tied = ranks.ranks != ranks.untied_ranks
    tied_queries = np.searchsorted(ranks.offsets, np.flatnonzero(is_tied), side="right") - 1
    for query in np.unique(tied_queries).tolist():
        own = slice(ranks.offsets[query], ranks.offsets[query + 1])
        untied, pessimistic = ranks.untied_ranks[own], ranks.ranks[own]
        yield query, expected_scores(untied, pessimistic, ks, precision_ks)


def _pessimistic_scores(ranks: Ranks, precision_ks: Sequence[int]) -> dict[str, np.ndarray]:
    """Scores of each query but recall@K, (Q,) float64 each."""
    starts, counts = ranks.offsets[:-1], ranks.num_positives
    order = np.arange(len(ranks.ranks)) - np.repeat(starts, counts) + 1
    precisions = order / ranks.ranks
    is_within_r = ranks.ranks <= np.repeat(counts, counts)

    def per_query(values: np.ndarray) -> np.ndarray:
        return np.add.reduceat(values, starts) if len(starts) else np.empty(0)

    scores = {f"precision@{k}": per_query(ranks.ranks <= k) / k for k in precision_ks}
    scores["map@r"] = per_query(np.where(is_within_r, precisions, 0.0)) / counts
    scores["r_precision"] = per_query(is_within_r) / counts
    scores["map"] = per_query(precisions) / counts
    scores["mrr"] = 1 / ranks.first
    scores["minp"] = counts / ranks.last
    return scores
