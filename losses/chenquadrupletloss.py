"""Four-term quadruplet loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metric_learning.losses.functional import check_batch, mean_where
from metric_learning.losses.pairs import pairs_with


class ChenQuadrupletLoss(nn.Module):
    """Triplet hinge, plus a hinge between positive pairs and pairs of two other classes.

    L = mean_{i,j,k} max(0, |x_i - x_j|^2 - |x_i - x_k|^2 + margin)
      + mean_{i,j,k,l} max(0, |x_i - x_j|^2 - |x_k - x_l|^2 + weak_margin),
    i and j of one class, k and l of two others, over all of the batch, rows on the unit sphere.
    Beyond Triplet Loss: a Deep Quadruplet Network (Chen et al. 2017), eq. 7,
    https://arxiv.org/abs/1704.01719.

    Args:
        margin: required gap in squared Euclidean distance; 0..4 is meaningful.
        weak_margin: required gap to pairs that do not share the anchor, in squared Euclidean
            distance; below the margin.

    Shape: that of `LabelLoss`.

    It takes B^3 (K - 1) / 4 numbers: 3 million for 160 images, 4 per class. Without positives, or
    without negatives, the loss is zero; with two classes the second term is. Differs from the
    paper: the squared distance takes the place of a learned metric, margins are fixed, and each
    term is averaged, not summed.
    """

    layout = "labels"

    def __init__(self, margin: float = 0.1, weak_margin: float = 0.05) -> None:
        super().__init__()
        self.margin = margin
        self.weak_margin = weak_margin

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the mean triplet hinge plus the mean hinge of the quadruplets."""
        check_batch(embeddings, labels)
        own = torch.arange(len(labels), device=labels.device)
        pairs = pairs_with(embeddings, labels, embeddings, labels, own)
        distances = pairs.squared_distances  # BxB
        rows, columns = pairs.positions(pairs.host_positive)
        gaps = distances[rows, columns][:, None] - distances[rows]  # TxB
        triplets = mean_where(F.relu(gaps + self.margin), pairs.is_negative[rows])
        i, j = pairs.positions(pairs.host_positive.triu())
        k, l = pairs.positions(pairs.host_negative.triu())  # noqa: E741
        gaps = distances[i, j][:, None] - distances[k, l][None, :]
        is_apart = pairs.is_negative[i][:, k] & pairs.is_negative[i][:, l]
        return triplets + mean_where(F.relu(gaps + self.weak_margin), is_apart)
