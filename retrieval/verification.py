"""Verification: are two images of the same class? Scores over all pairs of a data set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from metric_learning.retrieval.counting.bins import NUM_BINS, Bins
from metric_learning.retrieval.counting.choose import choose_counter
from metric_learning.retrieval.counting.thresholds import Counter, Share
from metric_learning.retrieval.inputs import checked_sets

PAIRS_AT_ONCE = 2**20  # positive pairs whose cosines are held together
FAR_EXPONENTS = (1, 2, 3, 4)  # false accept rates 0.1 … 0.0001
LEAST_ACCEPTED = 10  # negative pairs; fewer make a rate that chance decides


@dataclass(frozen=True, eq=False)
class SimilarityHistograms:
    """How many pairs of images have which cosine similarity.

    For a plot, add up neighbouring bins, e.g. `np.histogram(centres, 100, weights=positives)`.

    Attributes:
        edges: (B + 1,) float64, ascending. The bins are 2^-15 wide and centred on the multiples of
            that, so that what ties at -1, 0 or 1 shares a bin however it is rounded. Where all
            similarities lie within 2^-5, as those of an untrained model may, the bins cover only
            that range and are at least 2^5 times finer.
        positives: (B,) int64, pairs of the same class per bin.
        negatives: (B,) int64, pairs of different classes per bin.
    """

    edges: np.ndarray
    positives: np.ndarray
    negatives: np.ndarray

    @property
    def centres(self) -> np.ndarray:
        """Middle of each bin, (B,) float64."""
        return (self.edges[1:] + self.edges[:-1]) / 2


def verification_scores(
    embeddings: Tensor | np.ndarray,
    labels: Tensor | np.ndarray,
    *,
    gallery_embeddings: Tensor | np.ndarray | None = None,
    gallery_labels: Tensor | np.ndarray | None = None,
    device: str | torch.device = "cpu",
    share: Share | None = None,
) -> dict[str, float | int]:
    """Score how well one threshold on the cosine tells pairs of the same class from all others.

    The scores of `similarity_histograms`, whose arguments, errors and cost these are; see
    `score_histograms` for what they mean and how exact they are.

    Returns:
        `auc`, `eer` and `tar@far=0.1`, `0.01`, `0.001`, `0.0001` as fractions; `positive_pairs`,
        `negative_pairs`. A FAR that would accept fewer than 10 negative pairs is left out.
    """
    return score_histograms(
        similarity_histograms(
            embeddings,
            labels,
            gallery_embeddings=gallery_embeddings,
            gallery_labels=gallery_labels,
            device=device,
            share=share,
        )
    )


def score_histograms(histograms: SimilarityHistograms) -> dict[str, float | int]:
    """Compute the verification scores of a data set from its similarities.

    A pair is accepted if its similarity reaches a threshold; FAR is the share of the negative
    pairs that are accepted, TAR that of the positive ones: FaceNet (Schroff et al. 2015), section
    4, https://arxiv.org/abs/1503.03832. auc: area under TAR over FAR, the probability that a
    positive pair is more similar than a negative one, ties counted half: An introduction to ROC
    analysis (Fawcett 2006), https://doi.org/10.1016/j.patrec.2005.10.010. eer: the FAR that equals
    1 - TAR, interpolated between thresholds. tar@far=F: TAR at the lowest threshold with FAR <= F.

    Thresholds are the edges of the bins, 2^-15 apart or less. A positive and a negative pair in one
    bin tie, so the auc is off by at most half the share of such couples among all couples (usually
    below 1e-4, plus what the rounding of similarities carries over an edge) and in practice by less
    than 1e-6, as errors cancel. tar@far is too low by at most the share of positives in one bin.

    Args:
        histograms: with at least one positive and one negative pair.

    Returns:
        See `verification_scores`.
    """
    positives, negatives = histograms.positives, histograms.negatives
    num_positives, num_negatives = int(positives.sum()), int(negatives.sum())
    # Pairs accepted at the threshold above all bins, at the edge below the last one, and so on.
    true_accepts = np.concatenate([[0], np.cumsum(positives[::-1])])
    false_accepts = np.concatenate([[0], np.cumsum(negatives[::-1])])
    tar, far = true_accepts / num_positives, false_accepts / num_negatives
    scores: dict[str, float | int] = {
        "auc": float(np.diff(far) @ (tar[1:] + tar[:-1]) / 2),
        "eer": float(np.interp(0.0, far - (1 - tar), far)),
    }
    for exponent in FAR_EXPONENTS:
        allowed = num_negatives // 10**exponent
        if allowed >= LEAST_ACCEPTED:
            lowest = np.searchsorted(false_accepts, allowed, side="right") - 1
            scores[f"tar@far={10**-exponent}"] = float(tar[lowest])
    return scores | {"positive_pairs": num_positives, "negative_pairs": num_negatives}


def similarity_histograms(
    embeddings: Tensor | np.ndarray,
    labels: Tensor | np.ndarray,
    *,
    gallery_embeddings: Tensor | np.ndarray | None = None,
    gallery_labels: Tensor | np.ndarray | None = None,
    device: str | torch.device = "cpu",
    share: Share | None = None,
) -> SimilarityHistograms:
    """Count all pairs of a data set by cosine similarity.

    Without a gallery the pairs are those of two different rows, each once; with one, they are all
    of a query with a gallery image. A zero embedding has similarity 0 to everything.

    Args:
        embeddings: (N, D) float, any scale.
        labels: (N,) integer.
        gallery_embeddings: (G, D) float, or None for self-retrieval.
        gallery_labels: (G,) integer, given with `gallery_embeddings`.
        device: where the similarities are computed, of a type that has float64.
        share: of the work that this process does, where several share it; all get all counts.

    Returns:
        Histograms of 2^16 + 1 bins. Positives are counted by their cosines in float64; so are the
        negatives where torch computes them or the bins are finer than 2^-15, else they are float32
        with an error of about 1e-7. Cost: O(N G D) time, half of it in self-retrieval; the memory
        does not grow with the number of pairs.

    Raises:
        ValueError: a shape does not fit, an embedding is not finite, or there is no positive or no
            negative pair.
    """
    queries, query_labels, gallery, all_labels = checked_sets(
        embeddings, labels, gallery_embeddings, gallery_labels
    )
    pairs = _Pairs(query_labels, None if gallery is None else all_labels)
    if pairs.num_positives == 0:
        raise ValueError(
            f"none of the {pairs.num_pairs} pairs is of one class: verification needs a class with "
            "two images"
        )
    if pairs.num_positives == pairs.num_pairs:
        raise ValueError(
            f"all {pairs.num_pairs} pairs are of one class: verification needs a second class"
        )
    counter, bins, share = choose_counter(queries, gallery, device), Bins(), share or Share()
    counts = _count_pairs(counter, pairs, bins, share)
    finer = bins.finer(counts.sum(0))
    if finer is not None:
        bins, counts = finer, _count_pairs(counter, pairs, finer, share)
    return SimilarityHistograms(bins.edges, *counts)


class _Pairs:
    """All pairs of a query and a column of the gallery, both taken in an order.

    The gallery is ordered by class, so that a query's positives are neighbours. In self-retrieval
    the queries are so too, and a query is paired with the columns behind its own.

    Attributes:
        query_order: (Q,) int64, rows of the queries.
        gallery_order: (G,) int64, rows of the gallery.
        positives: (Q,) int64, first column that is a positive of the query.
        lasts: (Q,) int64, the column behind its last positive.
        firsts: (Q,) int64; columns before it and from `lasts` on are the query's negatives.
    """

    def __init__(self, query_labels: np.ndarray, gallery_labels: np.ndarray | None) -> None:
        self.is_self_retrieval = gallery_labels is None
        gallery_labels = query_labels if gallery_labels is None else gallery_labels
        self.gallery_order = np.argsort(gallery_labels, kind="stable")
        self.query_order = np.arange(len(query_labels))
        self.num_pairs = len(query_labels) * len(gallery_labels)
        if self.is_self_retrieval:
            self.query_order = self.gallery_order
            self.num_pairs = len(query_labels) * (len(query_labels) - 1) // 2
        ordered = gallery_labels[self.gallery_order]
        asked = query_labels[self.query_order]
        self.firsts = self.positives = np.searchsorted(ordered, asked, side="left")
        self.lasts = np.searchsorted(ordered, asked, side="right")
        if self.is_self_retrieval:
            self.firsts = np.zeros_like(self.lasts)
            self.positives = np.arange(1, len(asked) + 1)
        self.offsets = np.concatenate([[0], np.cumsum(self.lasts - self.positives)])
        self.num_positives = int(self.offsets[-1])

    def positive_rows(self, start: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows of query and gallery of up to PAIRS_AT_ONCE positive pairs, from `start` on."""
        numbers = np.arange(start, min(start + PAIRS_AT_ONCE, self.num_positives))
        queries = np.searchsorted(self.offsets, numbers, side="right") - 1
        columns = self.positives[queries] + numbers - self.offsets[queries]
        return self.query_order[queries], self.gallery_order[columns]


def _count_pairs(counter: Counter, pairs: _Pairs, bins: Bins, share: Share) -> np.ndarray:
    """Count positive and negative pairs by similarity, (2, NUM_BINS) int64, of all processes."""
    positives = _count_positives(counter, pairs, bins, share)
    negatives = counter.count_negatives(
        pairs.query_order, pairs.gallery_order, pairs.firsts, pairs.lasts, bins, share
    )
    counts = share.add(np.stack([positives, negatives]))
    assert counts.sum(1).tolist() == [pairs.num_positives, pairs.num_pairs - pairs.num_positives]
    return counts


def _count_positives(counter: Counter, pairs: _Pairs, bins: Bins, share: Share) -> np.ndarray:
    counts = np.zeros(NUM_BINS, np.int64)
    for start in range(0, pairs.num_positives, PAIRS_AT_ONCE)[share.rank :: share.size]:
        counts += bins.count(counter.pair_cosines(*pairs.positive_rows(start)))
    return counts
