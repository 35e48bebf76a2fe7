"""What is counted for ranks and for verification, in terms that all ways of counting share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from metric_learning.retrieval.counting.bins import Bins

MANY = 128  # queries with more positives are counted in a way of their own on the CPU
MOST_UNDECIDED = 0.05  # share of a tile above which float64 throughout is cheaper


class Thresholds(NamedTuple):
    """The cosines of each query's positives, with which all its similarities are compared."""

    # (Q + 1,) int64; query q's thresholds are `cosines[offsets[q]:offsets[q + 1]]`
    offsets: np.ndarray
    cosines: np.ndarray  # (M,) float64, those of a query best first
    tolerance: float  # similarities this close are level
    # (G,) int64, the gallery class by class; `order[firsts[q]:lasts[q]]` are those of query q's
    # class, itself among them where it is in the gallery
    order: np.ndarray
    firsts: np.ndarray  # (Q,) int64, as are the lasts
    lasts: np.ndarray
    own_rows: np.ndarray  # (Q,) int64, the gallery row that is the query itself; -1: none is

    def of(self, is_asked: np.ndarray) -> Thresholds:
        """Return those of some queries (Q,) bool; the others have none."""
        sizes = np.diff(self.offsets)
        offsets = np.concatenate([[0], np.cumsum(sizes * is_asked)])
        return self._replace(offsets=offsets, cosines=self.cosines[np.repeat(is_asked, sizes)])

    def positives(
        self, pair_cosines: Callable[[np.ndarray, np.ndarray], np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Count, per threshold, the images of the query's class ahead of it and level with it.

        The query itself counts, by its similarity to itself, if it is in the gallery.
        """
        queries = np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))
        ahead = np.arange(len(self.cosines)) - self.offsets[queries]
        reached = ahead + 1
        is_close = (np.diff(queries) == 0) & (-np.diff(self.cosines) < 2 * self.tolerance)
        for query in np.unique(queries[:-1][is_close]):
            part = slice(self.offsets[query], self.offsets[query + 1])
            ascending = self.cosines[part][::-1]
            bounds = self.cosines[part] + self.tolerance, self.cosines[part] - self.tolerance
            ahead[part] = len(ascending) - np.searchsorted(ascending, bounds[0], side="right")
            reached[part] = len(ascending) - np.searchsorted(ascending, bounds[1], side="left")

        own, asked = np.full(len(self.own_rows), -np.inf), np.flatnonzero(np.diff(self.offsets))
        inside = asked[self.own_rows[asked] >= 0]
        own[inside] = pair_cosines(inside, self.own_rows[inside])
        ahead += own[queries] > self.cosines + self.tolerance
        reached += own[queries] >= self.cosines - self.tolerance
        return ahead, reached - ahead


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
    threads: int | None = None  # the fewest of any process; None: those of this one


class Counter(Protocol):
    """Counts the similarities of queries with a gallery, exactly."""

    def pair_cosines(self, query_rows: np.ndarray, gallery_rows: np.ndarray) -> np.ndarray:
        """Return the cosines (M,) float64 of pairs of a query and a gallery image."""

    def block_cosines(self, query_rows: np.ndarray, gallery_rows: np.ndarray) -> np.ndarray:
        """Return the cosines (B, P) float64 of queries (B,) with all of the gallery images (P,)."""

    def sort_descending(self, offsets: np.ndarray, values: np.ndarray) -> None:
        """Sort each query's part of `values` (M,) in place, the greatest first."""

    def count(
        self, query_range: tuple[int, int], thresholds: Thresholds, share: Share
    ) -> tuple[np.ndarray, np.ndarray]:
        """Count the negatives ahead of each threshold and level with it, (M,) integers each.

        An image is ahead if it is more similar by more than the tolerance. Queries outside of the
        range have no thresholds.
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
