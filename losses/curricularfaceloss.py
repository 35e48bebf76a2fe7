"""CurricularFace loss: ArcFace that weighs hard classes more as training goes on."""

from __future__ import annotations

import torch
from torch import Tensor

from metric_learning.losses.classes import CosineLoss, add_angle, rotated

MOMENTUM = 0.01  # of the newest batch in the running mean


class CurricularFaceLoss(CosineLoss):
    """Cross-entropy of scaled cosines, with an angle at the target and weights on hard classes.

    L = mean_i -log softmax(s z_i)[y_i], c_ij = cos(x_i, w_j); z_ij = c_ij with the angle enlarged
    by m for j = y_i (past pi as in ArcMarginLoss); for j != y_i, z_ij = c_ij (t + c_ij) where the
    class is hard, c_ij > cos(angle(x_i, w_{y_i}) + m), and else c_ij. t is the running mean of the
    target cosines of the batches, 0 at first, 0.01 of it the newest; without gradient.
    CurricularFace (Huang et al. 2020), eq. 6 to 8, https://arxiv.org/abs/2004.00288.

    Args:
        scale: factor s on the cosines.
        arc_margin: angle m added at the target class, in radians.

    Shape, errors and the arguments for C and D are those of `CosineLoss`.
    """

    running_cosine: Tensor

    def __init__(
        self, class_dim: int, embedding_size: int, scale: float = 64.0, arc_margin: float = 0.5
    ) -> None:
        super().__init__(class_dim, embedding_size, scale)
        self.arc_margin = arc_margin
        self.register_buffer("running_cosine", torch.zeros(()))

    def margined(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the logits (B, C); in training mode, after an update of the running mean."""
        cosines, columns = self.cosines(embeddings), labels[:, None]
        targets = cosines.gather(1, columns)  # Bx1
        if self.training:
            newest = targets.detach().mean()
            mean = torch.lerp(self.running_cosine, newest.to(self.running_cosine), MOMENTUM)
            self.running_cosine.copy_(torch.where(mean.isfinite(), mean, self.running_cosine))
        is_hard = cosines > rotated(targets, self.arc_margin)
        weighted = cosines * (self.running_cosine.clone() + cosines)
        others = torch.where(is_hard, weighted, cosines)
        return self.scale * others.scatter(1, columns, add_angle(targets, self.arc_margin))
