"""Contrastive loss over all pairs of a batch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from metric_learning.losses.functional import euclidean, mean_where
from metric_learning.losses.pairs import LabelLoss, Pairs


class ContrastiveLoss(LabelLoss):
    """Squared distance of all positive pairs, squared hinge on the distance of all negative ones.

    L = mean_{same class} max(0, |x_i - x_j| - m_p)^2
      + mean_{other class} max(0, m_n - |x_i - x_j|)^2, rows on the unit sphere.
    Dimensionality Reduction by Learning an Invariant Mapping (Hadsell et al. 2006), eq. 4,
    https://doi.org/10.1109/CVPR.2006.100.

    Args:
        positive_margin: Euclidean distance up to which a positive pair costs nothing.
        negative_margin: Euclidean distance from which a negative pair costs nothing; up to 2.

    Shape: that of `LabelLoss`.

    Differs from the paper: no factor 1/2, embeddings are normalised, and positive and negative
    pairs are averaged apart, since a batch has many more of the latter. Without pairs of one kind
    the other kind is left.
    """

    def __init__(self, positive_margin: float = 0.0, negative_margin: float = 1.0) -> None:
        super().__init__()
        self.positive_margin = positive_margin
        self.negative_margin = negative_margin

    def compare(self, pairs: Pairs) -> Tensor:
        """Return the mean cost of the positive pairs plus that of the negative pairs."""
        distances = euclidean(pairs.squared_distances)  # BxM
        too_far = F.relu(distances - self.positive_margin).square()
        too_close = F.relu(self.negative_margin - distances).square()
        return mean_where(too_far, pairs.is_positive) + mean_where(too_close, pairs.is_negative)
