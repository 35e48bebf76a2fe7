"""Cosine softmax that chooses its scale itself (AdaCos)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from metric_learning.losses.classes import LOWEST_SCALE, CosineLoss, fixed_scale
from metric_learning.losses.functional import change_targets


class AdaCosLoss(CosineLoss):
    """Cross-entropy of cosines whose scale follows from the number of classes or from the angles.

    L = mean_i -log softmax(s c_i)[y_i], c_ij = cos(x_i, w_j). Fixed: s = sqrt(2) log(C - 1).
    Dynamic: it starts so, and before each batch
    s = log(mean_i sum_{j != y_i} exp(s c_ij)) / cos(min(pi / 4, median_i angle(x_i, w_{y_i}))).
    AdaCos (Zhang et al. 2019), eq. 12 and 16, https://arxiv.org/abs/1905.00292.

    Args:
        dynamic_scale: let the scale follow the angles; otherwise it is fixed.

    Shape, errors and the arguments for C and D are those of `CosineLoss`.

    Differs from the paper: the scale is never below 1, which it would be for few classes.
    """

    running_scale: Tensor

    def __init__(self, class_dim: int, embedding_size: int, dynamic_scale: bool = True) -> None:
        super().__init__(class_dim, embedding_size, 1.0)
        self.dynamic_scale = dynamic_scale
        self.register_buffer("running_scale", torch.tensor(fixed_scale(class_dim)))

    def class_scores(self, embeddings: Tensor) -> Tensor:
        """Return the scaled cosines (B, C) of embeddings (B, D)."""
        return self.running_scale * self.cosines(embeddings)

    def margined(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the scaled cosines (B, C); in training mode, after a new choice of the scale."""
        cosines = self.cosines(embeddings)
        if self.training and self.dynamic_scale:
            self._choose_scale(cosines.detach(), labels)
        return self.running_scale.clone() * cosines

    def _choose_scale(self, cosines: Tensor, labels: Tensor) -> None:
        """Set the scale from the cosines of a batch, unless they are not finite."""
        targets = cosines.gather(1, labels[:, None])
        others = change_targets(
            self.running_scale * cosines, labels, lambda own: torch.full_like(own, -torch.inf)
        )
        log_mean = others.flatten().logsumexp(0) - math.log(len(labels))
        median = targets.clamp(-1, 1).acos().median().clamp(max=math.pi / 4)
        scale = (log_mean / median.cos()).clamp(min=LOWEST_SCALE)
        self.running_scale.copy_(torch.where(scale.isfinite(), scale, self.running_scale))
