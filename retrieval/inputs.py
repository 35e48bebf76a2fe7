"""Checks of embeddings and labels that are evaluated."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

CHECKED_ROWS = 4096  # looked at together
GREATEST = 2.0**300  # squares of what is greater, or less than its inverse, leave float64


def checked_sets(
    embeddings: Tensor | np.ndarray,
    labels: Tensor | np.ndarray,
    gallery_embeddings: Tensor | np.ndarray | None,
    gallery_labels: Tensor | np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray]:
    """Check queries and, where there is one, their gallery.

    Returns:
        Queries (Q, D) and their labels (Q,); gallery (G, D), None in self-retrieval, and its labels
        (G,), then those of the queries. Embeddings are float32 or float64, labels int64.

    Raises:
        ValueError: a shape does not fit, an embedding is not finite, or labels are no integers.
    """
    if (gallery_embeddings is None) != (gallery_labels is None):
        raise ValueError("expected gallery_embeddings and gallery_labels together, found one")
    queries, query_labels = checked(embeddings, labels, "embeddings")
    if gallery_embeddings is None or gallery_labels is None:
        return queries, query_labels, None, query_labels
    gallery, all_labels = checked(gallery_embeddings, gallery_labels, "gallery_embeddings")
    if gallery.shape[1] != queries.shape[1]:
        raise ValueError(
            f"queries have {queries.shape[1]} dimensions, the gallery {gallery.shape[1]}: both "
            "must come from the same model"
        )
    return queries, query_labels, gallery, all_labels


def find_own_rows(is_query: np.ndarray, is_gallery: np.ndarray) -> np.ndarray | None:
    """Return the gallery row that is the query itself, of each query: (Q,) int64, -1: none.

    Of N images, (N,) bool each, some search and some are searched. None where none does both.
    """
    place = np.full(len(is_gallery), -1, dtype=np.int64)
    place[is_gallery] = np.arange(int(is_gallery.sum()))
    own = place[is_query]
    return own if (own >= 0).any() else None


def checked(
    embeddings: Tensor | np.ndarray, labels: Tensor | np.ndarray, what: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return embeddings (N, D) and labels (N,) as `checked_sets` does, whose errors these are."""
    rows = checked_rows(_as_array(embeddings), what)
    numbers = np.asarray(_as_array(labels))
    if numbers.shape != rows.shape[:1]:
        raise ValueError(
            f"expected {len(rows)} labels for {what}, found an array of shape {numbers.shape}"
        )
    if not np.issubdtype(numbers.dtype, np.integer):
        raise ValueError(f"expected integer labels for {what}, found {numbers.dtype}")
    return rows, numbers.astype(np.int64)


def checked_rows(rows: np.ndarray, what: str, number: int = 0) -> np.ndarray:
    """Return embeddings (N, D) as float32 or float64 in C order, checked as by `checked_sets`.

    The number is that of the first row, for the error.
    """
    rows = np.asarray(rows)
    check_shape(rows, what)
    rows = np.ascontiguousarray(rows, np.float64 if rows.dtype == np.float64 else np.float32)
    first = first_not_finite(rows)
    if first is not None:
        raise ValueError(
            f"{what} hold NaN or infinity, first in row {number + first}: the model diverged"
        )
    return _within_range(rows) if rows.dtype == np.float64 else rows


def check_shape(rows: np.ndarray, what: str) -> None:
    """Raise ValueError where embeddings are not (N, D), or there are none."""
    if rows.ndim != 2 or 0 in rows.shape:
        raise ValueError(f"expected {what} of shape (N, D), found {rows.shape}")


def _within_range(rows: np.ndarray) -> np.ndarray:
    """Scale float64 rows whose squares would leave the range of numbers, by a power of two."""
    largest = np.maximum(rows.max(1), -rows.min(1))
    is_far = (largest > 0) & ((largest < 1 / GREATEST) | (largest > GREATEST))
    if is_far.any():
        rows = rows.copy()
        rows[is_far] = np.ldexp(rows[is_far], -np.frexp(largest[is_far])[1][:, None])
    return rows


def first_not_finite(embeddings: np.ndarray) -> int | None:
    """Return the first row of embeddings (N, D) that holds NaN or infinity, if any does."""
    for start in range(0, len(embeddings), CHECKED_ROWS):
        is_finite = np.isfinite(embeddings[start : start + CHECKED_ROWS]).all(1)
        if not is_finite.all():
            return start + int(np.argmin(is_finite))
    return None


def _as_array(values: Tensor | np.ndarray) -> np.ndarray:
    if not isinstance(values, Tensor):
        return values
    values = values.detach().cpu()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
