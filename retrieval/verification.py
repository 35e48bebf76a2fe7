"""Verification: are two images of the same class? Scores over all pairs of a data set."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from metric_learning.retrieval.counting.bins import NUM_BINS, Bins
from metric_learning.retrieval.counting.choose import choose_counter
from metric_learning.retrieval.counting.thresholds import Counter, NegativePairs, Share
from metric_learning.retrieval.groups import Groups, checked_groups, count_ignored
from metric_learning.retrieval.inputs import checked_sets

PAIRS_AT_ONCE = 2**20  # positive pairs whose cosines are held together
EXPONENTS = (1, 2, 3, 4)  # of the false-accept rates 0.1 … 0.0001
LEAST_ACCEPTED = 10  # negative pairs; fewer make a rate that chance decides


@dataclass(frozen=True, eq=False)
class SimilarityHistograms:
    """How many pairs of images have which cosine similarity.

    For a plot, add up neighbouring bins, e.g. `np.histogram(centres, 100, weights=positives)`.
    """

    # (B + 1,) float64, ascending. The bins are 2^-15 wide and centred on the multiples of that, so
    # that ties at -1, 0 or 1 share a bin however they are rounded. Where all similarities lie
    # within 2^-5, as those of an untrained model may, the bins cover only that range and are at
    # least 2^5 times finer
    edges: npt.NDArray[np.float64]
    positives: npt.NDArray[np.int64]  # (B,) int64, pairs of the same class per bin
    negatives: npt.NDArray[np.int64]  # (B,) int64, pairs of different classes per bin

    @property
    def centres(self) -> npt.NDArray[np.float64]:
        """Middle of each bin, (B,) float64."""
        return (self.edges[1:] + self.edges[:-1]) / 2


def verification_scores(
    embeddings: Tensor | np.ndarray, labels: Tensor | np.ndarray, **options: Any
) -> dict[str, float | int]:
    """Score how well one threshold on the cosine tells pairs of the same class from all others.

    Arguments, errors and cost are those of `similarity_histograms`; see `score_histograms` for what
    the scores mean and how exact they are.

    Returns:
        `auc`, `eer` and `tar@far=0.1`, `0.01`, `0.001`, `0.0001` as fractions, and their cosines
        `threshold@far=0.1` and so on; `positive_pairs`, `negative_pairs`. A false-accept rate (far)
        that fewer than 10 negative pairs would make is left out.
    """
    return score_histograms(similarity_histograms(embeddings, labels, **options))


def score_histograms(histograms: SimilarityHistograms) -> dict[str, float | int]:
    """Compute `verification_scores` from similarities, with a positive and a negative pair or more.

    A pair is accepted if its similarity reaches a threshold; the false-accept rate (far) is the
    share of the negative pairs that are accepted, the true-accept rate (tar) that of the positive
    ones: FaceNet (Schroff et al. 2015), section 4, https://arxiv.org/abs/1503.03832. auc: area
    under tar over far, the probability that a positive pair is more similar than a negative one,
    ties counted half: An introduction to ROC analysis (Fawcett 2006),
    https://doi.org/10.1016/j.patrec.2005.10.010. eer: the far that equals 1 - tar, interpolated
    between thresholds. tar@far=F: tar at the lowest threshold whose far is at most F, which is
    threshold@far=F.

    Thresholds are the edges of the bins, 2^-15 apart or less. A positive and a negative pair in one
    bin tie, so the auc is off by at most half the share of such couples among all couples (usually
    below 1e-4, plus what the rounding of similarities carries over an edge) and in practice by less
    than 1e-6, as errors cancel. tar@far is too low by at most the share of positives in one bin.
    """
    positives, negatives = histograms.positives, histograms.negatives
    num_positives, num_negatives = int(positives.sum()), int(negatives.sum())
    # Pairs accepted at the threshold above all bins, at the edge below the last one, and so on.
    true_accepts = np.concatenate([[0], np.cumsum(positives[::-1])])
    false_accepts = np.concatenate([[0], np.cumsum(negatives[::-1])])
    tar, far = true_accepts / num_positives, false_accepts / num_negatives

    # In whole numbers, so that a pair in another bin moves it only where it changes the order.
    widths, heights = np.diff(false_accepts), true_accepts[1:] + true_accepts[:-1]
    twice_area = sum(map(operator.mul, widths.tolist(), heights.tolist()))
    scores: dict[str, float | int] = {
        "auc": twice_area / (2 * num_positives * num_negatives),
        "eer": float(np.interp(0.0, far - (1 - tar), far)),
    }
    for exponent in EXPONENTS:
        allowed = num_negatives // 10**exponent
        if allowed >= LEAST_ACCEPTED:
            lowest = np.searchsorted(false_accepts, allowed, side="right") - 1
            scores[f"tar@far={10**-exponent}"] = float(tar[lowest])
            scores[f"threshold@far={10**-exponent}"] = float(histograms.edges[-1 - lowest])
    return scores | {"positive_pairs": num_positives, "negative_pairs": num_negatives}


def similarity_histograms(
    embeddings: Tensor | np.ndarray,
    labels: Tensor | np.ndarray,
    *,
    gallery_embeddings: Tensor | np.ndarray | None = None,
    gallery_labels: Tensor | np.ndarray | None = None,
    device: str | torch.device = "cpu",
    share: Share | None = None,
    own_rows: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    gallery_groups: np.ndarray | None = None,
) -> SimilarityHistograms:
    """Count all pairs of a data set by cosine similarity.

    Without a gallery the pairs are those of two different rows, each once; with one, they are all
    of a query with a gallery image that is not itself: two images of which each is both make two. A
    zero embedding has similarity 0 to everything. Two images of one class and group are no pair.
    Arguments and errors are those of `retrieval.score_queries`; the device is of a type that has
    float64.

    Returns:
        Histograms of 2^16 + 1 bins. Positives are counted by their cosines in float64; so are the
        negatives where torch computes them or the bins are finer than 2^-15, else in float32 with
        an error of about 1e-7. Cost: O(N G D) time, half of it in self-retrieval; the memory
        does not grow with the number of pairs.

    Raises:
        ValueError: there is no positive or no negative pair.
    """
    queries, query_labels, gallery, all_labels = checked_sets(
        embeddings, labels, gallery_embeddings, gallery_labels
    )
    by_group = checked_groups(groups, gallery_groups, len(queries), gallery)
    pairs = _Pairs(query_labels, None if gallery is None else all_labels, own_rows, by_group)
    counter, bins, share = choose_counter(queries, gallery, device), Bins(), share or Share()
    counts = _count_pairs(counter, pairs, bins, share)
    finer = bins.finer(counts.sum(0))
    if finer is not None:
        bins, counts = finer, _count_pairs(counter, pairs, finer, share)
    return SimilarityHistograms(bins.edges, *counts)


class _Pairs:
    """All pairs of a query and a column of the gallery, both taken in an order.

    The gallery is ordered by class, so that a query's positives are neighbours. In self-retrieval
    the queries are so too, and a query is paired with the columns behind its own. Of another
    gallery, the row of a query itself is none of its pairs. `negatives` are the pairs of two
    classes.
    """

    def __init__(
        self,
        query_labels: npt.NDArray[np.int64],
        gallery_labels: npt.NDArray[np.int64] | None,
        own_rows: npt.NDArray[np.int64] | None,
        groups: Groups | None,
    ) -> None:
        is_self_retrieval = gallery_labels is None
        gallery_labels = query_labels if gallery_labels is None else gallery_labels
        gallery_order = np.argsort(gallery_labels, kind="stable")
        query_order = gallery_order if is_self_retrieval else np.arange(len(query_labels))

        # The columns of one class with a query, and the first that is paired with it.
        ordered, asked = gallery_labels[gallery_order], query_labels[query_order]
        firsts = np.searchsorted(ordered, asked, side="left")
        lasts = np.searchsorted(ordered, asked, side="right")
        self.first_positives = firsts
        self.num_pairs = len(query_labels) * len(gallery_labels)
        if is_self_retrieval:
            firsts = np.zeros_like(lasts)
            self.first_positives = np.arange(1, len(asked) + 1)
            self.num_pairs = len(query_labels) * (len(query_labels) - 1) // 2

        self.negatives = NegativePairs(query_order, gallery_order, firsts, lasts)
        self.own_rows, self.groups = own_rows, groups
        is_own = np.full(len(query_labels), is_self_retrieval)
        if own_rows is not None:
            is_own = own_rows >= 0
        num_own = 0 if is_self_retrieval else int(is_own.sum())
        if groups is not None:
            ignored = int(count_ignored(query_labels, gallery_labels, groups, is_own).sum())
            num_own += ignored // 2 if is_self_retrieval else ignored
        self.offsets = np.concatenate([[0], np.cumsum(lasts - self.first_positives)])
        self.num_listed = int(self.offsets[-1])  # with those of a query and itself or its group
        self.num_positives = self.num_listed - num_own
        self.num_pairs -= num_own
        if self.num_positives == 0:
            raise ValueError(
                f"none of the {self.num_pairs} pairs is of one class: verification needs a class "
                "with two images"
            )
        if self.num_positives == self.num_pairs:
            raise ValueError(
                f"all {self.num_pairs} pairs are of one class: verification needs a second class"
            )

    def positive_rows(self, start: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows of query and gallery of up to PAIRS_AT_ONCE positive pairs, from `start` on."""
        numbers = np.arange(start, min(start + PAIRS_AT_ONCE, self.num_listed))
        queries = np.searchsorted(self.offsets, numbers, side="right") - 1
        columns = self.first_positives[queries] + numbers - self.offsets[queries]
        rows, searched = self.negatives.query_order[queries], self.negatives.gallery_order[columns]
        is_pair = np.ones(len(rows), bool)
        if self.own_rows is not None:
            is_pair &= self.own_rows[rows] != searched
        if self.groups is not None:
            is_pair &= ~self.groups.are_same(rows, searched)
        return rows[is_pair], searched[is_pair]


def _count_pairs(counter: Counter, pairs: _Pairs, bins: Bins, share: Share) -> np.ndarray:
    """Count positive and negative pairs by similarity, (2, NUM_BINS) int64, of all processes."""
    positives = np.zeros(NUM_BINS, np.int64)
    for start in range(0, pairs.num_listed, PAIRS_AT_ONCE)[share.rank :: share.size]:
        positives += bins.count(counter.pair_cosines(*pairs.positive_rows(start)))
    negatives = counter.count_negatives(pairs.negatives, bins, share)
    counts = share.add(np.stack([positives, negatives]))
    assert counts.sum(1).tolist() == [pairs.num_positives, pairs.num_pairs - pairs.num_positives]
    return counts
