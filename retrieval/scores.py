"""Scores of single queries, derived from the ranks of their positives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retrieval.ranks import Ranks
from retrieval.ties import expected_scores

TIES = ("pessimistic", "expected")


@dataclass(frozen=True)
class QueryScores:
    """What each query that has a positive scored.

    Attributes:
        rows: (Q,) int64, the row of each query among all query embeddings.
        labels: (Q,) int64.
        first_rank: (Q,) int64, rank of the query's best positive, ties counted against it.
        num_positives: (Q,) int64.
        columns: metric -> (Q,) float64; their means are the metrics of the data set.
        queries_without_positive: number of queries left out.
        gallery: number of images in the gallery, the query itself included.
    """

    rows: np.ndarray
    labels: np.ndarray
    first_rank: np.ndarray
    num_positives: np.ndarray
    columns: dict[str, np.ndarray]
    queries_without_positive: int
    gallery: int

    def __len__(self) -> int:
        return len(self.rows)


def score_ranks(
    ranks: Ranks, ks: Sequence[int], precision_ks: Sequence[int], ties: str
) -> dict[str, np.ndarray]:
    """Compute every retrieval metric per query.

    recall@K: 1 where a positive is among the first K (also known as CMC at rank K).
    precision@K: share of positives among the first K. map@r and r_precision: A Metric Learning
    Reality Check (Musgrave et al. 2020), section 3.2, https://arxiv.org/abs/2003.08505. map: mean
    average precision over all positives. mrr: 1 / rank of the best positive. minp: positives /
    rank of the worst positive, the inverse negative penalty of AGW (Ye et al. 2021), section 4,
    https://arxiv.org/abs/2001.04193.

    Args:
        ranks: of Q queries.
        ks: K of recall@K, each at least 1.
        precision_ks: K of precision@K, each at least 1.
        ties: "pessimistic" puts a negative that ties with a positive before it; "expected" takes
            the mean over all orders of what ties.

    Returns:
        Metric -> (Q,) float64.
    """
    scores = _pessimistic_scores(ranks, ks, precision_ks)
    if ties == "expected":
        starts = ranks.offsets[:-1]
        tied = np.flatnonzero(np.add.reduceat(ranks.ranks != ranks.untied_ranks, starts))
        for query in tied:
            own = slice(ranks.offsets[query], ranks.offsets[query + 1])
            expected = expected_scores(ranks.untied_ranks[own], ranks.ranks[own], ks, precision_ks)
            for name, value in expected.items():
                scores[name][query] = value
    return scores


def _pessimistic_scores(
    ranks: Ranks, ks: Sequence[int], precision_ks: Sequence[int]
) -> dict[str, np.ndarray]:
    starts, counts = ranks.offsets[:-1], ranks.num_positives
    order = np.arange(len(ranks.ranks)) - np.repeat(starts, counts) + 1
    precisions = order / ranks.ranks
    is_within_r = ranks.ranks <= np.repeat(counts, counts)

    def per_query(values: np.ndarray) -> np.ndarray:
        return np.add.reduceat(values, starts) if len(starts) else np.empty(0)

    scores = {f"recall@{k}": (ranks.first <= k).astype(np.float64) for k in ks}
    scores |= {f"precision@{k}": per_query(ranks.ranks <= k) / k for k in precision_ks}
    scores["map@r"] = per_query(np.where(is_within_r, precisions, 0.0)) / counts
    scores["r_precision"] = per_query(is_within_r) / counts
    scores["map"] = per_query(precisions) / counts
    scores["mrr"] = 1 / ranks.first
    scores["minp"] = counts / ranks.last
    return scores
