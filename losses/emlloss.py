"""Ensemble metric loss (EML)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from metric_learning.losses.functional import (
    block_columns,
    check_batch,
    check_blocks,
    check_samples_each_class,
    full_precision,
    squared_distances,
    tied_max,
    tied_min,
)

BETA = 1e5
LINEAR_FROM = 20.0  # beyond this gap the loss continues linearly, so that exp cannot overflow


class EmlLoss(nn.Module):
    """Smooth penalty on each anchor's gap between its farthest positive and closest negative.

    Per anchor: b = max d2(positives) - min d2(negatives);
    theta = mean exp(d2_pos - max d2_pos) * mean exp(min d2_neg - d2_neg);
    f(x) = log(1 + beta theta e^x) / log(1 + beta), beta = 1e5;
    L = mean f(min(b, 20)) + (log theta + max(b, 20) + log beta) / log(1 + beta) - f(20).
    d2 is the squared Euclidean distance of the raw embeddings, not normalised.
    After Large Scale Strongly Supervised Ensemble Metric Learning (Huang et al. 2012),
    https://arxiv.org/abs/1212.6094, as PaddleCV/metric_learning computes it.

    Args:
        samples_each_class: images of one class in a row (K).

    Shape:
        embeddings: (B, D) float, blocks of K rows per class, used as they are.
        labels: (B,) int64, checked against those blocks.
        returns: () float32.

    Raises:
        ValueError: K < 2, B is not divisible by K, or the labels are not such blocks.

    Differs from the reference: not at all.
    """

    reads_raw = True

    def __init__(self, samples_each_class: int = 2) -> None:
        super().__init__()
        check_samples_each_class(samples_each_class)
        self.samples_each_class = samples_each_class

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the mean penalty over all anchors."""
        check_batch(embeddings, labels)
        check_blocks(labels, self.samples_each_class)
        distances = squared_distances(full_precision(embeddings))  # BxB
        positives, negatives = block_columns(len(labels), self.samples_each_class, distances.device)
        to_positives = self.to_positives(distances.gather(1, positives))  # Bx(K-1)
        to_negatives = distances.gather(1, negatives)  # Bx(B-K)
        farthest = tied_max(to_positives, 1)  # Bx1
        closest = tied_min(to_negatives, 1)  # Bx1
        theta = (to_positives - farthest).exp().mean(1) * (closest - to_negatives).exp().mean(1)
        gap = (farthest - closest).squeeze(1)
        return _penalty(gap, theta).mean()

    def to_positives(self, distances: Tensor) -> Tensor:
        """Return the squared distances (B, K-1) of each anchor that count as to positives."""
        return distances


def _penalty(gap: Tensor, theta: Tensor) -> Tensor:
    """The piecewise penalty per anchor: gap, theta (B,) -> (B,)."""

    def smooth(values: Tensor) -> Tensor:
        return torch.log1p(BETA * theta * values.exp()) / math.log1p(BETA)

    linear = (theta.log() + gap.clamp(min=LINEAR_FROM) + math.log(BETA)) / math.log1p(BETA)
    return smooth(gap.clamp(max=LINEAR_FROM)) + linear - smooth(theta.new_full((), LINEAR_FROM))
