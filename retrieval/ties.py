"""Expected scores of a query whose positives tie with negatives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class _Groups:
    """Tied images, as groups in rank order; all orders of the images of a group are equally likely.

    A positive that ties with no negative is a group of its own.
    """

    starts: npt.NDArray[np.int64]  # (T,) int64, images that come before the group for certain
    positives_before: npt.NDArray[np.int64]  # (T,) int64, the positives among those
    positives: npt.NDArray[np.int64]  # (T,) int64, positives of the group, at least 1
    negatives: npt.NDArray[np.int64]  # (T,) int64, negatives of the group

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """Images of each group, (T,) int64."""
        return self.positives + self.negatives


def expected_scores(
    untied_ranks: np.ndarray, ranks: np.ndarray, ks: Sequence[int], precision_ks: Sequence[int]
) -> dict[str, float]:
    """Compute the exact mean of each score of one query over all orders of tied images.

    Positives that share a tied negative form a group, and all orders within a group are equally
    likely. Average precision as in Computing Information Retrieval Performance Measures
    Efficiently in the Presence of Tied Scores (McSherry & Najork 2008),
    https://doi.org/10.1007/978-3-540-78646-7_38; the others follow from the hypergeometric
    distribution of the positives among the places of a group.

    Ranks (R,) int64, one-based and ascending, are those of the positives where the negatives that
    tie with them stand before them, untied ones where they stand behind; every K is at least 1.
    The metrics are those of `retrieval.scores.score_ranks`. Cost: O(images that tie).
    """
    groups = _tied_groups(untied_ranks, ranks)
    total = len(ranks)

    none_before = int(groups.starts[0])  # all of them negatives
    missed = _missed(int(groups.positives[0]), int(groups.negatives[0]))
    scores = {
        f"recall@{k}": 1 - float(missed[np.clip(k - none_before, 0, len(missed) - 1)]) for k in ks
    }
    scores |= {f"precision@{k}": _found(groups, k) / k for k in precision_ks}
    scores["r_precision"] = _found(groups, total) / total
    scores["map@r"] = _precision_sum(groups, total) / total
    scores["map"] = _precision_sum(groups, int(groups.starts[-1] + groups.sizes[-1])) / total

    first_places = none_before + np.arange(1, len(missed))
    scores["mrr"] = float(-np.diff(missed) @ (1 / first_places))
    if len(groups.sizes) > 1:
        missed = _missed(int(groups.positives[-1]), int(groups.negatives[-1]))
    # Read from its end, a group has its last positive where it else has its first.
    last_places = groups.starts[-1] + groups.sizes[-1] - np.arange(len(missed) - 1)
    scores["minp"] = float(-np.diff(missed) @ (total / last_places))
    return scores


def _tied_groups(untied_ranks: np.ndarray, ranks: np.ndarray) -> _Groups:
    order = np.arange(len(ranks))
    better = untied_ranks - 1 - order  # negatives certainly before each positive
    better_or_tied = ranks - 1 - order
    is_new = np.ones(len(ranks), bool)
    is_new[1:] = better[1:] >= better_or_tied[:-1]  # shares no negative with the one before
    heads = np.flatnonzero(is_new)
    tails = np.append(heads[1:], len(ranks)) - 1
    return _Groups(
        starts=better[heads] + heads,
        positives_before=heads,
        positives=tails - heads + 1,
        negatives=better_or_tied[tails] - better[heads],
    )


def _missed(positives: int, negatives: int) -> np.ndarray:
    """Probability that none of the first t images of a group is positive, t = 0..negatives + 1."""
    negatives_left = np.arange(negatives, -1, -1)
    return np.append(1.0, np.cumprod(negatives_left / (negatives_left + positives)))


def _found(groups: _Groups, k: int) -> float:
    """Expected number of positives among the first k images."""
    places = np.clip(k - groups.starts, 0, groups.sizes)
    return float((groups.positives / groups.sizes) @ places)


def _precision_sum(groups: _Groups, last_place: int) -> float:
    """Expected sum of the precisions at the positives among the first `last_place` images."""
    # Given a positive at place t of a group, the other positives are spread evenly over its other
    # places, so that precision = (positives_before + 1 + density (t - 1)) / (starts + t).
    density = (groups.positives - 1) / np.maximum(groups.sizes - 1, 1)
    is_positive = groups.positives / groups.sizes
    offsets = groups.positives_before + 1 - density * (groups.starts + 1)
    places = np.clip(last_place - groups.starts, 0, groups.sizes)
    return float(
        is_positive @ (offsets * _reciprocal_sums(groups.starts, places) + density * places)
    )


def _reciprocal_sums(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Sum of 1 / (start + t) over t = 1..size, for each of T starts and sizes: (T,) float64."""
    ends = np.cumsum(sizes)
    denominators = np.arange(1, ends[-1] + 1) + np.repeat(starts - (ends - sizes), sizes)
    sums = np.zeros(len(sizes))
    is_filled = sizes > 0  # reduceat gives a value for nothing
    sums[is_filled] = np.add.reduceat(1 / denominators, (ends - sizes)[is_filled])
    return sums
