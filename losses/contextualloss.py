"""Contextual loss: images of one class are to have the same neighbours."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metric_learning.losses.functional import check_batch, mean_where
from metric_learning.losses.pairs import Pairs, pairs_with

SLOPE = 10.0  # that a step passes for its own, as the authors have it


class ContextualLoss(nn.Module):
    """Overlap of neighbourhoods as it should be by label, plus a hinge on cosines and their mean.

    L = l C + g (mean_ij s_ij - r)^2 + (1 - l - g) (mean [a - s_ip]+ + mean [s_in - b]+, over those
    of the pairs that are above 0), s the cosine;
    C = 1/B^2 sum_{i != j} (1 - J_ij)^2 of one class, J_ij^2 of two;
    J = (H + H^T) / 2, H_ij = mean over q in R_i of W_qj; R_i: those q within the k/2 nearest of i
    for which i is within the k/2 nearest of q; W_qj, where j is within the k nearest N_q of q:
    half of |N_q & N_j| / |N_q| plus the same of the images outside. Neighbours are those whose
    squared distance is at most e beyond that of the last of the k, the image itself among them.
    Whether an image is a neighbour is a step of that distance, whose slope counts as 10.
    Supervised Metric Learning to Rank for Retrieval via Contextual Similarity Optimization (Liao et
    al. 2023), section 3, and the authors' code, https://arxiv.org/abs/2210.01908.

    Args:
        contextual_weight: weight l of the neighbourhoods' overlap.
        contextual_k: neighbours k, the image itself among them; images per class.
        contextual_slack: e, in squared distance.
        mean_weight: weight g of the mean cosine's distance from its aim.
        mean_cosine: aim r of the mean cosine.
        calibration_positive: cosine a from which on a positive pair costs nothing.
        calibration_negative: cosine b up to which a negative pair costs nothing.

    Shape: that of `LabelLoss`; a ValueError where the weights are above 1 together.

    The mean cosine is over all B^2 pairs, each image with itself among them, as in the authors'
    code. The loss compares whole neighbourhoods of a batch, and so takes no memory. A batch of one
    image costs nothing.
    """

    layout = "labels"

    def __init__(
        self,
        contextual_weight: float = 0.4,
        contextual_k: int = 4,
        contextual_slack: float = 0.05,
        mean_weight: float = 0.1,
        mean_cosine: float = 0.25,
        calibration_positive: float = 0.75,
        calibration_negative: float = 0.6,
    ) -> None:
        super().__init__()
        if contextual_weight + mean_weight > 1:
            raise ValueError(
                "expected contextual_weight and mean_weight of 1 at most together, found "
                f"{contextual_weight:g} and {mean_weight:g}"
            )
        self.contextual_weight = contextual_weight
        self.contextual_k = contextual_k
        self.contextual_slack = contextual_slack
        self.mean_weight = mean_weight
        self.mean_cosine = mean_cosine
        self.calibration_positive = calibration_positive
        self.calibration_negative = calibration_negative

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the weighted sum of the three parts."""
        check_batch(embeddings, labels)
        own = torch.arange(len(labels), device=labels.device)
        pairs = pairs_with(embeddings, labels, embeddings, labels, own)
        too_far = F.relu(self.calibration_positive - pairs.cosines)
        too_close = F.relu(pairs.cosines - self.calibration_negative)
        hinges = mean_where(too_far, pairs.is_positive & (too_far > 0))
        hinges = hinges + mean_where(too_close, pairs.is_negative & (too_close > 0))

        overlaps = self.overlaps(pairs)
        lacking = torch.where(pairs.is_positive, (1.0 - overlaps).square(), 0.0)
        excess = torch.where(pairs.is_negative, overlaps.square(), 0.0)
        context = (lacking + excess).mean()
        spread = (pairs.cosines.mean() - self.mean_cosine).square()

        rest = 1.0 - self.contextual_weight - self.mean_weight
        loss = self.contextual_weight * context + self.mean_weight * spread + rest * hinges
        return loss if len(labels) > 1 else 0.0 * loss

    def overlaps(self, pairs: Pairs) -> Tensor:
        """Return the contextual similarities J of all pairs of a batch, (B, B)."""
        distances = pairs.squared_distances
        k = min(self.contextual_k, len(distances))
        nearest = distances.detach().topk(k, dim=1, largest=False).values  # Bxk

        within = self.neighbours(distances, nearest[:, -1:])
        outside = 1.0 - within
        shared = within @ within.T / within.detach().sum(1, keepdim=True)
        avoided = outside @ outside.T / outside.detach().sum(1, keepdim=True).clamp(min=1.0)
        weights = 0.5 * (shared + avoided) * within

        half = max(1, k // 2)
        closest = self.neighbours(distances, nearest[:, half - 1 : half])
        mutual = closest * closest.T
        overlaps = mutual @ weights / mutual.sum(1, keepdim=True)
        return 0.5 * (overlaps + overlaps.T)

    def neighbours(self, distances: Tensor, limits: Tensor) -> Tensor:
        """Return 1 where distances (B, B) are within limits (B, 1) and the slack, else 0."""
        is_within = (distances.detach() - self.contextual_slack <= limits).to(distances.dtype)
        return is_within - SLOPE * (distances - distances.detach())
