"""What an exact rank is: the terms in which all ways of counting agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from metric_learning.retrieval.counting.bins import Bins

MOST_UNDECIDED = 0.05  # share of a tile above which float64 throughout is cheaper


class Truth(NamedTuple):
    """What the similarities of each query are compared with.

    Attributes:
        offsets: (Q + 1,) int64; query q's thresholds are `thresholds[offsets[q]:offsets[q + 1]]`.
        thresholds: (M,) float64, the cosines of each query's positives, best first.
        tolerance: similarities this close are level.
    """

    offsets: np.ndarray
    thresholds: np.ndarray
    tolerance: float


@dataclass(frozen=True)
class Share:
    """The part of the work that this process does when several share it.

    Attributes:
        rank: number of this process.
        size: number of processes.
        add: sums an array over all processes.
    """

    rank: int = 0
    size: int = 1
    add: Callable[[np.ndarray], np.ndarray] = lambda array: array


class Counter(Protocol):
    """Counts the similarities of queries with a gallery, exactly."""

    def pair_cosines(self, query_rows: np.ndarray, gallery_rows: np.ndarray) -> np.ndarray:
        """Return the cosines (M,) float64 of pairs of a query and a gallery image."""

    def sort_descending(self, offsets: np.ndarray, values: np.ndarray) -> None:
        """Sort each query's part of `values` (M,) in place, the greatest first."""

    def count(
        self, query_range: tuple[int, int], truth: Truth, share: Share
    ) -> tuple[np.ndarray, np.ndarray]:
        """Count the gallery images ahead of each threshold and level with it, (M,) int64 each.

        Ahead is what is more similar by more than the tolerance. All gallery images count,
        positives and the query itself included. Queries outside of the range have no thresholds.
        """

    def count_negatives(
        self,
        query_order: np.ndarray,
        gallery_order: np.ndarray,
        firsts: np.ndarray,
        lasts: np.ndarray,
        bins: Bins,
        share: Share,
    ) -> np.ndarray:
        """Count pairs by similarity, all but the columns firsts[i]..lasts[i] of query i.

        Queries and columns are numbered in their orders (Q,) and (G,). In self-retrieval the orders
        are the same, and what is left out covers all columns up to the query's own.

        Returns:
            (B,) int64, the counts of this process.
        """


def rounding_error(dim: int, dtype: type[np.floating]) -> float:
    """Bound the error of a computed cosine, for sums of `dim` products taken in any order.

    |fl(x y) - x y| <= dim u sum |x_i y_i| / (1 - dim u) <= dim u |x| |y| (Higham 2002, Accuracy and
    Stability of Numerical Algorithms, section 3.1); the rest is for the rounding of the normalised
    factors and of the bounds that the cosine is compared with.
    """
    return (dim + 8) * float(np.finfo(dtype).eps) / 2 * 1.01
