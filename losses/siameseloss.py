"""Contrastive loss on given pairs: the two towers of a Siamese network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metric_learning.losses.functional import check_batch, euclidean, normalised, sent


class SiameseLoss(nn.Module):
    """Squared distance of given positive pairs, squared hinge on the distance of negative ones.

    L = mean_i y_i |a_i - b_i|^2 + (1 - y_i) max(0, m - |a_i - b_i|)^2, y_i = 1 where a_i and b_i
    are of one class, rows on the unit sphere. Both towers are the one network.
    Dimensionality Reduction by Learning an Invariant Mapping (Hadsell et al. 2006), eq. 4,
    https://doi.org/10.1109/CVPR.2006.100; pairs as in Siamese Neural Networks for One-shot Image
    Recognition (Koch et al. 2015).

    Args:
        negative_margin: Euclidean distance from which a negative pair costs nothing; up to 2.

    Shape:
        embeddings: (B, D) float, rows ordered a0 b0 a1 b1 ..., normalised here.
        labels: (B,) int64.
        returns: () float32.

    Raises:
        ValueError: B is not a positive multiple of 2.

    Differs from the paper: no factor 1/2, and embeddings are normalised, since they are compared by
    cosine later.
    """

    layout = "pairs"

    def __init__(self, negative_margin: float = 1.0) -> None:
        super().__init__()
        self.negative_margin = negative_margin

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cost over all pairs."""
        check_batch(embeddings, labels)
        if len(labels) == 0 or len(labels) % 2:
            raise ValueError(f"batch of {len(labels)} images is not a positive multiple of 2")
        embeddings = normalised(embeddings)
        squared = (embeddings[0::2] - embeddings[1::2]).square().sum(1)  # B/2
        too_close = F.relu(self.negative_margin - euclidean(squared)).square()
        is_same_class = sent(labels[0::2] == labels[1::2], embeddings.device)
        return torch.where(is_same_class, squared, too_close).mean()
