"""Ranks by their definition, in float64, one query after the other; and data to rank."""

from __future__ import annotations

import numpy as np

TOLERANCE = 1e-9


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows over their norms, in float64; a zero row stays zero."""
    rows = np.asarray(rows, np.float64)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300)


def oracle_ranks(queries, query_labels, gallery=None, gallery_labels=None):
    """Query row -> (ranks, untied ranks), lists, of every query that has a positive."""
    is_self = gallery is None
    if is_self:
        gallery, gallery_labels = queries, query_labels
    found = {}
    similarities = unit(queries) @ unit(gallery).T
    for query, row in enumerate(similarities):
        is_other = np.ones(len(row), bool)
        if is_self:
            is_other[query] = False
        is_positive = (gallery_labels == query_labels[query]) & is_other
        positives = np.sort(row[is_positive])[::-1]
        negatives = row[~is_positive & is_other]
        if len(positives):
            found[query] = (
                [n + 1 + int((negatives >= s - TOLERANCE).sum()) for n, s in enumerate(positives)],
                [n + 1 + int((negatives > s + TOLERANCE).sum()) for n, s in enumerate(positives)],
            )
    return found


def make(kind, n, d, seed=0):
    """Embeddings (n, d) float32 and labels of about four images per class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, max(2, n // 4), n)
    labels[:2] = 0
    rows = rng.normal(size=(n, d))
    if kind == "clustered":
        rows = 0.3 * rows + rng.normal(size=(labels.max() + 1, d))[labels]
    if kind == "tied":
        rows = rng.integers(-1, 2, size=(n, d))
    if kind == "duplicated":
        rows[n // 2 :] = rows[: n - n // 2]
    if kind == "collapsed":
        rows = np.ones((n, d))
    if kind == "nearly collapsed":  # as an untrained network does
        rows = 100 + 0.1 * rows
    if kind == "near ties":  # similarities that float32 cannot tell apart
        rows = np.repeat(rows[: n // 2 + 1], 2, axis=0)[:n] * (1 + 1e-7 * rng.normal(size=(n, 1)))
        rows[:, 0] += 1e-7 * rng.normal(size=n)
    if kind == "large classes":
        labels = rng.integers(0, 2, n)
    if kind == "one image each":
        labels = np.concatenate([[0, 0], np.arange(1, n - 1)])
    return rows.astype(np.float32), labels
