"""Retrieval metrics of a set of embeddings, all derived from exact ranks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metric_learning.retrieval.counting.thresholds import Share
from metric_learning.retrieval.euclidean import euclidean_similarities
from metric_learning.retrieval.groups import Groups, checked_groups, count_ignored
from metric_learning.retrieval.inputs import checked_sets
from metric_learning.retrieval.ranks import Ranks, iterate_ranks, ranks_of_similarities
from metric_learning.retrieval.scores import TIES, QueryScores, score_ranks

DISTANCES = ("cosine", "euclidean")
DEFAULT_KS = (1, 10, 100, 1000)  # of the papers, whatever the size of the gallery


def default_ks(gallery_size: int) -> list[int]:
    """Return those of DEFAULT_KS that a gallery holds, and 1 in any case."""
    return [k for k in DEFAULT_KS if k == 1 or k <= gallery_size]


def evaluate(
    embeddings: Tensor | np.ndarray,
    labels: Tensor | np.ndarray,
    ks: Sequence[int] = DEFAULT_KS,
    *,
    gallery_embeddings: Tensor | np.ndarray | None = None,
    gallery_labels: Tensor | np.ndarray | None = None,
    **options: Any,
) -> dict[str, float | int]:
    """Compute Recall@K and the other retrieval metrics, exactly; by cosine similarity by default.

    The means of `score_queries`, whose arguments and errors these are.

    Returns:
        `recall@K` and `precision@K` per K, `map@r`, `r_precision`, `map`, `mrr`, `minp` as
        fractions; `queries` (those that count), `queries_without_positive`, `gallery` (images in
        the gallery, the query itself included).
    """
    options |= {"gallery_embeddings": gallery_embeddings, "gallery_labels": gallery_labels}
    return summarise(score_queries(embeddings, labels, ks, **options))


def summarise(scores: QueryScores) -> dict[str, float | int]:
    """Average the scores of all queries: the dict that `evaluate` returns."""
    return {
        **{name: float(np.mean(values)) for name, values in scores.columns.items()},
        "queries": len(scores),
        "queries_without_positive": scores.queries_without_positive,
        "gallery": scores.gallery,
    }


def chance_recall(
    labels: np.ndarray,
    ks: Sequence[int],
    gallery_labels: np.ndarray | None = None,
    is_in_gallery: np.ndarray | None = None,
    groups: Groups | None = None,
) -> dict[str, float]:
    """Compute the Recall@K that random embeddings have on average, exactly, from labels alone.

    A query with P positives among the G images that it can find misses them all in its first K
    with probability C(G - P, K) / C(G, K).

    Args:
        labels: (N,) integer, of the queries.
        ks: the K, each 1 or more.
        gallery_labels: (G,) integer; None where every query searches all others.
        is_in_gallery: (N,) bool, which queries the gallery holds too; they do not find themselves.
        groups: of queries and gallery, see `retrieval.groups`; None: there are none.

    Returns:
        `recall@K_chance` per K, the mean over the queries that have a positive; 0 of none.
    """
    counts = np.stack(count_positives(labels, gallery_labels, is_in_gallery, groups), axis=1)
    pairs, weights = np.unique(counts[counts[:, 0] > 0], axis=0, return_counts=True)

    chances = {}
    for k in ks:
        missed = [_chance_of_none(int(positives), k, int(size)) for positives, size in pairs]
        found = np.average(1 - np.array(missed), weights=weights) if missed else 0.0
        chances[f"recall@{k}_chance"] = float(found)
    return chances


def chance_scores(
    labels: np.ndarray,
    gallery_labels: np.ndarray | None = None,
    is_in_gallery: np.ndarray | None = None,
    groups: Groups | None = None,
) -> dict[str, float]:
    """Compute the other metrics that random embeddings have on average, exactly.

    The image at rank k is right with probability P / G, and then each of the k - 1 before it with
    (P - 1) / (G - 1). A query of P positives misses them all before rank k with probability
    C(G - P, k - 1) / C(G, k - 1). The arguments are those of `chance_recall`.

    Returns:
        `map@r`, `r_precision`, `map` and `mrr`, means over the queries that have a positive; 0 of
        none.
    """
    counts = np.stack(count_positives(labels, gallery_labels, is_in_gallery, groups), axis=1)
    pairs, weights = np.unique(counts[counts[:, 0] > 0], axis=0, return_counts=True)
    names = ("map@r", "r_precision", "map", "mrr")
    if len(pairs) == 0:
        return dict.fromkeys(names, 0.0)
    found = [_chances_of(int(positives), int(size)) for positives, size in pairs]
    return dict(zip(names, np.average(found, axis=0, weights=weights).tolist(), strict=True))


def _chances_of(num_positives: int, size: int) -> tuple[float, float, float, float]:
    """Return what `chance_scores` names, of a query with so many positives among `size` images."""
    ranks = np.arange(1, size + 1)
    is_right = num_positives / size
    before = (num_positives - 1) / max(size - 1, 1)  # share of the others that are right
    precisions = is_right * (1 + (ranks - 1) * before) / ranks  # where the rank is right, else 0

    # None before rank k: a product over the ranks, of which each draws from fewer images.
    drawn = size - np.arange(size)
    missed = np.cumprod(np.maximum(drawn - num_positives, 0) / drawn)
    is_first = np.concatenate([[1.0], missed[:-1]]) - missed
    return (
        float(precisions[:num_positives].sum() / num_positives),
        is_right,
        float(precisions.sum() / num_positives),
        float((is_first / ranks).sum()),
    )


def count_positives(
    labels: np.ndarray,
    gallery_labels: np.ndarray | None = None,
    is_in_gallery: np.ndarray | None = None,
    groups: Groups | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Count each query's positives, and all images that it can find: (N,) int64 each.

    The arguments are those of `chance_recall`.
    """
    searched = labels if gallery_labels is None else gallery_labels
    if is_in_gallery is None:
        is_in_gallery = np.full(len(labels), gallery_labels is None)
    classes, counts = np.unique(searched, return_counts=True)
    places = np.searchsorted(classes, labels).clip(max=len(classes) - 1)
    num_positives = np.where(classes[places] == labels, counts[places] - is_in_gallery, 0)
    findable = len(searched) - is_in_gallery.astype(np.int64)
    if groups is None:
        return num_positives, findable
    ignored = count_ignored(labels, searched, groups, is_in_gallery)
    return num_positives - ignored, findable - ignored


def _chance_of_none(num_positives: int, k: int, size: int) -> float:
    """Probability that none of the positives is among `k` images drawn of `size`."""
    fewer, more = sorted((num_positives, k))  # it is the same with both exchanged
    if fewer + more > size:
        return 0.0
    return float(np.prod(1 - more / (size - np.arange(fewer))))


def score_queries(
    embeddings: Tensor | np.ndarray,
    labels: Tensor | np.ndarray,
    ks: Sequence[int] = DEFAULT_KS,
    *,
    gallery_embeddings: Tensor | np.ndarray | None = None,
    gallery_labels: Tensor | np.ndarray | None = None,
    precision_ks: Sequence[int] = (),
    ties: str = "pessimistic",
    device: str | torch.device = "cpu",
    share: Share | None = None,
    own_rows: np.ndarray | None = None,
    distance: str = "cosine",
    groups: np.ndarray | None = None,
    gallery_groups: np.ndarray | None = None,
) -> QueryScores:
    """Score every query by the exact ranks of its positives.

    Without a gallery every row queries all others (itself excluded by its row); with one, every
    row queries the gallery. Queries without a positive are left out and counted.

    Args:
        embeddings: (N, D) float, of the queries; any scale.
        labels: (N,) integer.
        ks: the K of recall@K, each 1..G; those of the default may be larger.
        gallery_embeddings: (G, D) float, or None for self-retrieval.
        gallery_labels: (G,) integer, given with `gallery_embeddings`.
        precision_ks: the K of precision@K, each 1..G.
        ties: "pessimistic" or "expected", see `retrieval.scores.score_ranks`.
        device: where the similarities are computed.
        share: of the work that this process does, where several share it; all get all scores.
        own_rows: (Q,) int64, rows of the gallery that are the queries themselves and are left out,
            -1 where there is none; None: the gallery holds no query.
        distance: "cosine", or "euclidean" of the embeddings as they are, see
            `retrieval.euclidean`, where nothing is shared.
        groups: (N,) integer, -1: none; gallery images of a query's class and group are left out of
            its ranking, see `retrieval.groups`.
        gallery_groups: (G,) integer, given with `groups` where there is a gallery.

    Raises:
        ValueError: a shape does not fit, an embedding is not finite, a K is out of range, or no
            query has a positive.
    """
    sets = checked_sets(embeddings, labels, gallery_embeddings, gallery_labels)
    _check_settings(ks, precision_ks, ties, len(sets[3]))
    by_group = checked_groups(groups, gallery_groups, len(sets[0]), sets[2])
    ranks = _ranks_by(distance, *sets, device, share, own_rows, by_group)
    return _some(score_ranks(ranks, sets[1], len(sets[3]), ks, precision_ks, ties))


def _ranks_by(
    distance: str,
    queries: np.ndarray,
    query_labels: np.ndarray,
    gallery: np.ndarray | None,
    gallery_labels: np.ndarray,
    device: str | torch.device,
    share: Share | None,
    own_rows: np.ndarray | None,
    groups: Groups | None,
) -> Iterator[Ranks]:
    """Rank each query's positives by a distance of DISTANCES, see `ranks.iterate_ranks`."""
    if distance == "cosine":
        sets = queries, query_labels, gallery, gallery_labels
        return iterate_ranks(*sets, device, share, own_rows, groups)
    if distance != "euclidean":
        raise ValueError(f"expected a distance of {', '.join(DISTANCES)}, found {distance!r}")
    chunks = euclidean_similarities(queries, gallery, device)
    own_rows = np.arange(len(queries)) if gallery is None else own_rows
    return ranks_of_similarities(chunks, query_labels, gallery_labels, own_rows, groups)


def score_similarities(
    chunks: Iterable[tuple[slice, np.ndarray]],
    labels: np.ndarray,
    ks: Sequence[int] = DEFAULT_KS,
    *,
    gallery_labels: np.ndarray | None = None,
    precision_ks: Sequence[int] = (),
    ties: str = "pessimistic",
    own_rows: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    gallery_groups: np.ndarray | None = None,
) -> QueryScores:
    """Score every query by given similarities, such as those of a re-ranking.

    `chunks` are rows of B consecutive queries and their similarities (B, G) float64. Labels (Q,)
    and (G,) are int64; without those of a gallery query i is gallery image i, and left out of its
    gallery. The other arguments and the errors are those of `score_queries`.
    """
    by_group = checked_groups(groups, gallery_groups, len(labels), gallery_labels)
    if gallery_labels is None:
        gallery_labels, own_rows = labels, np.arange(len(labels))
    _check_settings(ks, precision_ks, ties, len(gallery_labels))
    ranks = ranks_of_similarities(chunks, labels, gallery_labels, own_rows, by_group)
    return _some(score_ranks(ranks, labels, len(gallery_labels), ks, precision_ks, ties))


def _check_settings(
    ks: Sequence[int], precision_ks: Sequence[int], ties: str, gallery_size: int
) -> None:
    chosen = [*precision_ks, *(() if tuple(ks) == DEFAULT_KS else ks)]
    if not all(isinstance(k, int | np.integer) for k in (*ks, *precision_ks)):
        raise ValueError(f"expected every K to be an integer, found {(*ks, *precision_ks)}")
    if chosen and not 1 <= min(chosen) <= max(chosen) <= gallery_size:
        found = min(chosen) if min(chosen) < 1 else max(chosen)
        raise ValueError(
            f"expected every K to be 1 to {gallery_size}, the size of the gallery, found {found}"
        )
    if ties not in TIES:
        raise ValueError(f"expected ties to be one of {', '.join(TIES)}, found {ties!r}")


def _some(scores: QueryScores) -> QueryScores:
    """Return the scores; ValueError if there are none."""
    if len(scores) == 0:
        raise ValueError(
            f"none of the {scores.queries_without_positive} queries has another image of its class "
            "in the gallery: there is nothing to retrieve"
        )
    return scores
