"""Retrieval metrics of a set of embeddings, all derived from exact ranks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from retrieval.ranks import Ranks, positive_ranks


def evaluate(
    embeddings: Tensor | np.ndarray,
    labels: Tensor | np.ndarray,
    ks: Sequence[int] = (1, 10, 100, 1000),
    *,
    gallery_embeddings: Tensor | np.ndarray | None = None,
    gallery_labels: Tensor | np.ndarray | None = None,
    device: str | torch.device = "cpu",
) -> dict[str, float | int]:
    """Compute Recall@K, MAP@R and R-precision by cosine similarity, exactly.

    Without a gallery every row queries all others (itself excluded by its row); with one, every
    row queries the gallery. Similarities are float64; a negative as similar as a positive (within
    1e-9) stands before it. Queries without a positive are left out and counted.
    MAP@R and R-precision: A Metric Learning Reality Check (Musgrave et al. 2020), section 3.2,
    https://arxiv.org/abs/2003.08505.

    Args:
        embeddings: (N, D) float, of the queries; any scale.
        labels: (N,) integer.
        ks: the K of Recall@K, each at least 1.
        gallery_embeddings: (G, D) float, or None for self-retrieval.
        gallery_labels: (G,) integer, given with `gallery_embeddings`.
        device: where the similarities are computed.

    Returns:
        `recall@K` per K, `map@r`, `r_precision` as fractions; `queries` (those that count),
        `queries_without_positive`, `gallery` (images in the gallery, the query itself included).

    Raises:
        ValueError: a shape does not fit, an embedding is not finite, a K is below 1, or no query
            has a positive.
    """
    if (gallery_embeddings is None) != (gallery_labels is None):
        raise ValueError("expected gallery_embeddings and gallery_labels together, found one")
    bad_ks = [k for k in ks if k < 1]
    if bad_ks:
        raise ValueError(f"expected every K of Recall@K to be at least 1, found {bad_ks}")
    queries, query_labels = _checked(embeddings, labels, "embeddings", device)
    if gallery_embeddings is None or gallery_labels is None:
        gallery, all_gallery_labels = queries, query_labels
    else:
        gallery, all_gallery_labels = _checked(
            gallery_embeddings, gallery_labels, "gallery_embeddings", device
        )
        if gallery.shape[1] != queries.shape[1]:
            raise ValueError(
                f"queries have {queries.shape[1]} dimensions, the gallery {gallery.shape[1]}"
            )
    ranks = positive_ranks(
        queries, query_labels, gallery, all_gallery_labels, gallery_embeddings is None
    )
    if len(ranks.queries) == 0:
        raise ValueError(
            f"none of the {len(queries)} queries has another image of its class in the gallery: "
            "there is nothing to retrieve"
        )
    return {
        **{f"recall@{k}": float(np.mean(ranks.first <= k)) for k in ks},
        "map@r": float(np.mean(_average_precision_at_r(ranks))),
        "r_precision": float(np.mean(_r_precision(ranks))),
        "queries": len(ranks.queries),
        "queries_without_positive": ranks.queries_without_positive,
        "gallery": len(gallery),
    }


def _checked(
    embeddings: Tensor | np.ndarray,
    labels: Tensor | np.ndarray,
    what: str,
    device: str | torch.device,
) -> tuple[Tensor, Tensor]:
    embeddings = torch.as_tensor(embeddings).to(device)
    labels = torch.as_tensor(labels).to(device)
    if embeddings.ndim != 2 or len(embeddings) == 0:
        raise ValueError(f"expected {what} of shape (N, D), found {tuple(embeddings.shape)}")
    if labels.shape != embeddings.shape[:1]:
        raise ValueError(
            f"expected {len(embeddings)} labels for {what}, found shape {tuple(labels.shape)}"
        )
    is_finite = embeddings.isfinite().all(1)
    if not bool(is_finite.all()):
        first = int((~is_finite).nonzero()[0])
        raise ValueError(f"{what} hold NaN or infinity, first in row {first}: the model diverged")
    return embeddings, labels.long()


def _within_first_r(ranks: Ranks) -> tuple[np.ndarray, np.ndarray]:
    """Positives R per query (Q,), and which of all positives rank within their query's R (M,)."""
    num_positives = np.diff(ranks.offsets)
    return num_positives, ranks.ranks <= np.repeat(num_positives, num_positives)


def _average_precision_at_r(ranks: Ranks) -> np.ndarray:
    """Per query: 1/R sum over positives within the first R of their precision, (Q,)."""
    num_positives, counted = _within_first_r(ranks)
    order = np.arange(len(ranks.ranks)) - np.repeat(ranks.offsets[:-1], num_positives) + 1
    precisions = np.where(counted, order / ranks.ranks, 0.0)
    return np.add.reduceat(precisions, ranks.offsets[:-1]) / num_positives


def _r_precision(ranks: Ranks) -> np.ndarray:
    """Per query: the share of positives among its first R neighbours, (Q,)."""
    num_positives, counted = _within_first_r(ranks)
    return np.add.reduceat(counted.astype(np.int64), ranks.offsets[:-1]) / num_positives
