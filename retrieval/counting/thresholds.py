"""What is counted for ranks and for verification, in terms that all ways of counting share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from metric_learning.retrieval.counting.bins import Bins

MOST_UNDECIDED = 0.05  # share of a tile above which float64 throughout is cheaper


class Thresholds(NamedTuple):
    """The cosines of each query's positives, with which all its similarities are compared."""

    # (Q + 1,) int64; query q's thresholds are `cosines[offsets[q]:offsets[q + 1]]`
    offsets: np.ndarray
    cosines: np.ndarray  # (M,) float64, those of a query best first
    tolerance: float  # similarities this close are level


class NegativePairs(NamedTuple):
    """The pairs of two classes, as ranges of an ordered gallery.

    Query `query_order[i]` is paired with the images `gallery_order[j]` of all columns j before
    firsts[i] and from lasts[i] on. In self-retrieval the two orders are the same, and no query is
    paired with a column up to its own, so that a pair counts once.
    """

    query_order: np.ndarray  # (Q,) int64, rows of the queries
    gallery_order: np.ndarray  # (G,) int64, rows of the gallery
    firsts: np.ndarray  # (Q,) int64, as are the lasts
    lasts: np.ndarray


@dataclass(frozen=True)
class Share:
    """The part of the work that this process does when several share it."""

    rank: int = 0  # number of this process
    size: int = 1  # number of processes
    # sums an array over all processes
    add: Callable[[np.ndarray], np.ndarray] = lambda array: array


class Counter(Protocol):
    """Counts the similarities of queries with a gallery, exactly."""

    def pair_cosines(self, query_rows: np.ndarray, gallery_rows: np.ndarray) -> np.ndarray:
        """Return the cosines (M,) float64 of pairs of a query and a gallery image."""

    def sort_descending(self, offsets: np.ndarray, values: np.ndarray) -> None:
        """Sort each query's part of `values` (M,) in place, the greatest first."""

    def count(
        self, query_range: tuple[int, int], thresholds: Thresholds, share: Share
    ) -> tuple[np.ndarray, np.ndarray]:
        """Count the gallery images ahead of each threshold and level with it, (M,) int64 each.

        An image is ahead if it is more similar by more than the tolerance. All images count, the
        positives and the query itself included. Queries outside of the range have no thresholds.
        """

    def count_negatives(self, pairs: NegativePairs, bins: Bins, share: Share) -> np.ndarray:
        """Count pairs of two classes by similarity: (NUM_BINS,) int64, those of this process."""


def rounding_error(dim: int, dtype: type[np.floating]) -> float:
    """Bound the error of a computed cosine, for sums of `dim` products taken in any order.

    |fl(x y) - x y| <= dim u sum |x_i y_i| / (1 - dim u) <= dim u |x| |y| (Higham 2002, Accuracy and
    Stability of Numerical Algorithms, section 3.1); the rest is for the rounding of the normalised
    factors and of the bounds that the cosine is compared with.
    """
    return (dim + 8) * float(np.finfo(dtype).eps) / 2 * 1.01
