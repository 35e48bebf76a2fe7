"""Quadruplet loss of the reference: margin sample mining over a batch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from metric_learning.losses.functional import (
    block_columns,
    check_batch,
    check_blocks,
    check_samples_each_class,
    normalised,
    squared_distances,
    tied_max,
    tied_min,
)


class QuadrupletLoss(nn.Module):
    """Hinge between the farthest positive pair and the closest negative pair of a batch.

    L = max(0, max_{same class} |x_i - x_j|^2 - min_{other class} |x_i - x_j|^2 + margin), one
    scalar per batch, rows on the unit sphere.
    Margin Sample Mining Loss (Xiao et al. 2017), section 3, https://arxiv.org/abs/1710.00478.

    Args:
        margin: required gap in squared Euclidean distance; 0..4 is meaningful.
        samples_each_class: images of one class in a row (K).

    Shape:
        embeddings: (B, D) float, blocks of K rows per class, normalised here.
        labels: (B,) int64, checked against those blocks.
        returns: () float32.

    Raises:
        ValueError: K < 2, B is not divisible by K, or the labels are not such blocks.

    Differs from the reference: not at all. Each extreme is found twice, as (i, j) and (j, i), and
    the gradient reaches both in full, so it is twice the derivative of the formula above.
    """

    def __init__(self, margin: float = 0.1, samples_each_class: int = 2) -> None:
        super().__init__()
        check_samples_each_class(samples_each_class)
        self.margin = margin
        self.samples_each_class = samples_each_class

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the hinge of the batch's two extremes."""
        check_batch(embeddings, labels)
        check_blocks(labels, self.samples_each_class)
        distances = squared_distances(normalised(embeddings))  # BxB
        positives, negatives = block_columns(len(labels), self.samples_each_class, distances.device)
        farthest_positive = tied_max(distances.gather(1, positives), (0, 1))
        closest_negative = tied_min(distances.gather(1, negatives), (0, 1))
        return F.relu(farthest_positive + self.margin - closest_negative).mean()
