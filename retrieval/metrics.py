"""Retrieval metrics of a set of embeddings, all derived from exact ranks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from retrieval.counting.truth import Share
from retrieval.ranks import Ranks, iterate_ranks, ranks_of_similarities
from retrieval.scores import TIES, QueryScores, score_ranks

DEFAULT_KS = (1, 10, 100, 1000)  # of the papers, whatever the size of the gallery
CHECKED_ROWS = 4096  # looked at together for NaN


def evaluate(
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
) -> dict[str, float | int]:
    """Compute Recall@K and the other retrieval metrics by cosine similarity, exactly.

    The means of `score_queries`, whose arguments and errors these are.

    Returns:
        `recall@K` and `precision@K` per K, `map@r`, `r_precision`, `map`, `mrr`, `minp` as
        fractions; `queries` (those that count), `queries_without_positive`, `gallery` (images in
        the gallery, the query itself included).
    """
    return summarise(
        score_queries(
            embeddings,
            labels,
            ks,
            gallery_embeddings=gallery_embeddings,
            gallery_labels=gallery_labels,
            precision_ks=precision_ks,
            ties=ties,
            device=device,
            share=share,
        )
    )


def summarise(scores: QueryScores) -> dict[str, float | int]:
    """Average the scores of all queries: the dict that `evaluate` returns."""
    return {
        **{name: float(np.mean(values)) for name, values in scores.columns.items()},
        "queries": len(scores),
        "queries_without_positive": scores.queries_without_positive,
        "gallery": scores.gallery,
    }


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

    Returns:
        A score per query and metric.

    Raises:
        ValueError: a shape does not fit, an embedding is not finite, a K is out of range, or no
            query has a positive.
    """
    if (gallery_embeddings is None) != (gallery_labels is None):
        raise ValueError("expected gallery_embeddings and gallery_labels together, found one")
    queries, query_labels = checked(embeddings, labels, "embeddings")
    gallery, all_gallery_labels = None, query_labels
    if gallery_embeddings is not None and gallery_labels is not None:
        gallery, all_gallery_labels = checked(
            gallery_embeddings, gallery_labels, "gallery_embeddings"
        )
        if gallery.shape[1] != queries.shape[1]:
            raise ValueError(
                f"queries have {queries.shape[1]} dimensions, the gallery {gallery.shape[1]}: "
                "both must come from the same model"
            )
    _check_settings(ks, precision_ks, ties, len(all_gallery_labels))
    ranks = iterate_ranks(queries, query_labels, gallery, all_gallery_labels, device, share)
    return _score(ranks, query_labels, len(all_gallery_labels), ks, precision_ks, ties)


def score_similarities(
    chunks: Iterable[tuple[slice, np.ndarray]],
    labels: np.ndarray,
    ks: Sequence[int] = DEFAULT_KS,
    *,
    gallery_labels: np.ndarray | None = None,
    precision_ks: Sequence[int] = (),
    ties: str = "pessimistic",
) -> QueryScores:
    """Score every query by given similarities, such as those of a re-ranking.

    Args:
        chunks: rows of B consecutive queries and their similarities (B, G) float64.
        labels: (Q,) int64, of the queries.
        ks: the K of recall@K.
        gallery_labels: (G,) int64; None: query i is gallery image i, and left out of its gallery.
        precision_ks: the K of precision@K.
        ties: see `retrieval.scores.score_ranks`.

    Returns:
        A score per query and metric.

    Raises:
        ValueError: a K is out of range, or no query has a positive.
    """
    searched = labels if gallery_labels is None else gallery_labels
    _check_settings(ks, precision_ks, ties, len(searched))
    ranks = ranks_of_similarities(chunks, labels, searched, gallery_labels is None)
    return _score(ranks, labels, len(searched), ks, precision_ks, ties)


def _check_settings(
    ks: Sequence[int], precision_ks: Sequence[int], ties: str, gallery_size: int
) -> None:
    chosen = [*precision_ks, *(() if tuple(ks) == DEFAULT_KS else ks)]
    if chosen and not 1 <= min(chosen) <= max(chosen) <= gallery_size:
        found = min(chosen) if min(chosen) < 1 else max(chosen)
        raise ValueError(
            f"expected every K to be 1 to {gallery_size}, the size of the gallery, found {found}"
        )
    if ties not in TIES:
        raise ValueError(f"expected ties to be one of {', '.join(TIES)}, found {ties!r}")


def _score(
    all_ranks: Iterable[Ranks],
    labels: np.ndarray,
    gallery_size: int,
    ks: Sequence[int],
    precision_ks: Sequence[int],
    ties: str,
) -> QueryScores:
    parts = [(ranks, score_ranks(ranks, ks, precision_ks, ties)) for ranks in all_ranks]
    rows = np.concatenate([ranks.queries for ranks, _ in parts])
    if len(rows) == 0:
        raise ValueError(
            f"none of the {len(labels)} queries has another image of its class in the gallery: "
            "there is nothing to retrieve"
        )
    return QueryScores(
        rows=rows,
        labels=labels[rows],
        first_rank=np.concatenate([ranks.first for ranks, _ in parts]),
        num_positives=np.concatenate([ranks.num_positives for ranks, _ in parts]),
        columns={
            name: np.concatenate([columns[name] for _, columns in parts]) for name in parts[0][1]
        },
        queries_without_positive=len(labels) - len(rows),
        gallery=gallery_size,
    )


def checked(
    embeddings: Tensor | np.ndarray, labels: Tensor | np.ndarray, what: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return embeddings (N, D) float32 or float64 and labels (N,) int64 as arrays.

    Raises:
        ValueError: a shape does not fit, or an embedding is not finite.
    """
    rows = embeddings.detach().cpu().numpy() if isinstance(embeddings, Tensor) else embeddings
    rows = np.asarray(rows)
    numbers = np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels)
    if rows.ndim != 2 or 0 in rows.shape:
        raise ValueError(f"expected {what} of shape (N, D), found {rows.shape}")
    if numbers.shape != rows.shape[:1]:
        raise ValueError(
            f"expected {len(rows)} labels for {what}, found an array of shape {numbers.shape}"
        )
    if rows.dtype != np.float64:
        rows = np.ascontiguousarray(rows, np.float32)
    for start in range(0, len(rows), CHECKED_ROWS):
        is_finite = np.isfinite(rows[start : start + CHECKED_ROWS]).all(1)
        if not is_finite.all():
            first = start + int(np.argmin(is_finite))
            raise ValueError(
                f"{what} hold NaN or infinity, first in row {first}: the model diverged"
            )
    return rows, numbers.astype(np.int64)
