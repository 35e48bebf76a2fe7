"""Additive angular margin loss (ArcFace)."""

from __future__ import annotations

import torch
from torch import Tensor

from metric_learning.losses.classes import TargetMarginLoss, add_angle, rotated
from metric_learning.losses.functional import PADDLE_LOGIT_FLOOR


class ArcMarginLoss(TargetMarginLoss):
    """Cross-entropy of scaled cosines, with an angle added at the target class.

    L = mean_i -log softmax(s * c_i)[y_i], c_ij = cos(x_i, w_j) for j != y_i and
    c_ij = cos(angle(x_i, w_j) + m) for j = y_i. Where the angle would pass pi (cos <= cos(pi - m)),
    c = cos - m sin(pi - m) instead; with the easy margin the angle is added only where cos > 0.
    ArcFace (Deng et al. 2019), section 3, https://arxiv.org/abs/1801.07698.

    Args:
        arc_scale: factor s on the cosines.
        arc_margin: angle m added at the target class, in radians.
        arc_easy_margin: add the angle only where the cosine is positive.

    Shape, errors and the arguments for C and D are those of `CosineLoss`.

    Differs from the reference: not at all; its limit on a cost is kept
    (`functional.cross_entropy`).
    """

    logit_floor = PADDLE_LOGIT_FLOOR

    def __init__(
        self,
        class_dim: int,
        embedding_size: int,
        arc_scale: float = 80.0,
        arc_margin: float = 0.15,
        arc_easy_margin: bool = False,
    ) -> None:
        super().__init__(class_dim, embedding_size, arc_scale)
        self.arc_margin = arc_margin
        self.arc_easy_margin = arc_easy_margin

    def add_margin(self, targets: Tensor) -> Tensor:
        """Cosines of the angles enlarged by the margin: (B, 1) -> (B, 1)."""
        if self.arc_easy_margin:
            return torch.where(targets > 0, rotated(targets, self.arc_margin), targets)
        return add_angle(targets, self.arc_margin)
