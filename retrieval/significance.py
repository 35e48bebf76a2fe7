"""How sure a metric is, and whether two models differ: resampling whole classes.

Classes, not queries, are resampled, since the queries of a class succeed and fail together. With
few classes an interval is too narrow: in simulations a 95 % interval held the truth in 93 % of the
trials at 30 classes and in 90 % at 10.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from scipy.stats import binomtest

CHUNK_ELEMENTS = 2**20  # class weights or signs held at once: 8 MiB
MAX_EXACT_CLASSES = 13  # 2**13 sign flips are fewer than NUM_FLIPS
NUM_FLIPS = 10_000
EQUAL = 1e-9  # relative; sums of the same numbers with other signs round differently


@dataclass(frozen=True)
class PairedComparison:
    """By how much one model scores more than another on the same queries."""

    difference: float  # mean of second - first over all queries
    low: float  # lower end of its 95 % interval
    high: float  # upper end of its 95 % interval
    # probability of a difference at least as large, on either side, if it were chance which model
    # is which in every class
    p_permutation: float
    # the same by McNemar's exact test, which takes queries for independent; None where the scores
    # are not 0 and 1
    p_mcnemar: float | None
    # (I,) int64, rows where second scores more: wrong -> right for scores of 0 and 1
    improved: np.ndarray
    worsened: np.ndarray  # (J,) int64, rows where second scores less: right -> wrong


def bootstrap_interval(
    values: np.ndarray,
    labels: np.ndarray,
    *,
    num_samples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[Any, Any]:
    """Compute a confidence interval of the mean over all queries, resampling classes.

    The percentile interval of the pairs cluster bootstrap: classes are drawn with replacement, and
    a mean is over all queries of the drawn classes. Bootstrap-Based Improvements for Inference with
    Clustered Errors (Cameron, Gelbach & Miller 2008), https://doi.org/10.1162/rest.90.3.414.

    Args:
        values: (Q,) or (Q, K) float or bool, K scores per query.
        labels: (Q,) integer, class of each query.
        num_samples: draws, at least 1.
        confidence: share of the draws inside the interval, above 0 and below 1.
        seed: of the draws, which all K columns share.

    Returns:
        The low and high end: two floats for values (Q,), two arrays (K,) for (Q, K). Cost:
        O(K (Q + C num_samples)) time for C classes; beside the values C K + num_samples K floats.

    Raises:
        ValueError: a shape or number does not fit, a value is not finite, or all queries are of
            one class, so that there is nothing to resample.
    """
    if num_samples < 1 or not 0 < confidence < 1:
        raise ValueError(
            "expected num_samples of at least 1 and a confidence between 0 and 1, found "
            f"{num_samples} and {confidence}"
        )
    values = np.asarray(values)
    if values.ndim not in (1, 2):
        raise ValueError(f"expected values of shape (Q,) or (Q, K), found {values.shape}")
    sums, counts = _class_sums(values[:, None] if values.ndim == 1 else values, labels)
    num_classes = len(counts)
    if num_classes < 2:
        raise ValueError(
            "expected queries of at least 2 classes, which are resampled for an interval, found "
            f"{num_classes}"
        )

    tail = (1 - confidence) / 2
    means = _resampled_means(sums, counts, num_samples, seed)
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    return (float(low[0]), float(high[0])) if values.ndim == 1 else (low, high)


def compare_paired(
    first: np.ndarray,
    second: np.ndarray,
    labels: np.ndarray,
    *,
    num_samples: int = 1000,
    seed: int = 0,
) -> PairedComparison:
    """Compare the scores (Q,) of two models on the same queries.

    The p value is by sign flips of whole classes: of all of them where at most 13 classes differ,
    else of 10,000 random ones, counting the observed one among them (Permutation P-values Should
    Never Be Zero, Phipson & Smyth 2010, https://arxiv.org/abs/1603.05766). The other arguments are
    those of `bootstrap_interval`.

    Raises:
        ValueError: as `bootstrap_interval`, or the two have different numbers of queries.
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(
            "expected one score per query of both models, found shapes "
            f"{first.shape} and {second.shape}: compare evaluations of the same queries"
        )

    differences = second - first
    low, high = bootstrap_interval(differences, labels, num_samples=num_samples, seed=seed)
    improved, worsened = np.flatnonzero(differences > 0), np.flatnonzero(differences < 0)
    num_changed = len(improved) + len(worsened)
    p_mcnemar = float(binomtest(len(improved), num_changed).pvalue) if num_changed else 1.0
    is_binary = bool(np.isin(first, (0, 1)).all() and np.isin(second, (0, 1)).all())
    return PairedComparison(
        difference=float(differences.mean()),
        low=low,
        high=high,
        p_permutation=_sign_flip_p(_class_sums(differences[:, None], labels)[0][:, 0], seed),
        p_mcnemar=p_mcnemar if is_binary else None,
        improved=improved,
        worsened=worsened,
    )


def _class_sums(values: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum values (Q, K) over each of C classes: (C, K) float64, and queries per class (C,)."""
    labels = np.asarray(labels)
    if labels.shape != values.shape[:1]:
        raise ValueError(f"expected {len(values)} labels of queries, found shape {labels.shape}")
    _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    sums = np.empty((len(counts), values.shape[1]))
    for column in range(values.shape[1]):
        sums[:, column] = np.bincount(classes, values[:, column], len(counts))
    if not np.isfinite(sums).all():
        raise ValueError("expected finite scores of queries, found NaN or infinity")
    return sums, counts


def _resampled_means(
    sums: np.ndarray, counts: np.ndarray, num_samples: int, seed: int
) -> np.ndarray:
    """Means over the queries of classes drawn with replacement, (num_samples, K)."""
    rng = np.random.default_rng(seed)
    chances = np.full(len(counts), 1 / len(counts))
    means = []
    for size in _chunk_sizes(num_samples, len(counts)):
        weights = rng.multinomial(len(counts), chances, size).astype(np.float64)
        means.append((weights @ sums) / (weights @ counts)[:, None])
    return np.concatenate(means)


def _chunk_sizes(total: int, width: int) -> list[int]:
    """Split `total` rows of `width` numbers into chunks of at most CHUNK_ELEMENTS numbers."""
    size = max(1, CHUNK_ELEMENTS // width)
    return [min(size, total - start) for start in range(0, total, size)]


def _sign_flip_p(sums: np.ndarray, seed: int) -> float:
    """Two-sided p value of the sum of the class sums (C,) under random signs."""
    sums = sums[sums != 0]  # a flip of 0 changes nothing
    threshold = abs(sums.sum()) - EQUAL * np.abs(sums).sum()
    if len(sums) <= MAX_EXACT_CLASSES:
        signs = np.array(list(product((-1, 1), repeat=len(sums))))
        return float(np.mean(np.abs(signs @ sums) >= threshold))
    rng = np.random.default_rng(seed)
    num_extreme = 0
    for size in _chunk_sizes(NUM_FLIPS, len(sums)):
        signs = 2 * rng.integers(0, 2, (size, len(sums)), dtype=np.int8) - 1
        num_extreme += int((np.abs(signs @ sums) >= threshold).sum())
    return (num_extreme + 1) / (NUM_FLIPS + 1)
