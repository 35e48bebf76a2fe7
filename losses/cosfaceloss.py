"""Additive cosine margin loss (CosFace)."""

from __future__ import annotations

from torch import Tensor

from metric_learning.losses.classes import TargetMarginLoss


class CosFaceLoss(TargetMarginLoss):
    """Cross-entropy of scaled cosines, less a margin at the target class.

    L = mean_i -log softmax(s (c_i - m [j = y_i]))[y_i], c_ij = cos(x_i, w_j).
    CosFace (Wang et al. 2018), eq. 4, https://arxiv.org/abs/1801.09414.

    Args:
        scale: factor s on the cosines.
        cos_margin: margin m that the cosine of the target class loses.

    Shape, errors and the arguments for C and D are those of `CosineLoss`.
    """

    def __init__(
        self, class_dim: int, embedding_size: int, scale: float = 64.0, cos_margin: float = 0.35
    ) -> None:
        super().__init__(class_dim, embedding_size, scale)
        self.cos_margin = cos_margin

    def add_margin(self, targets: Tensor) -> Tensor:
        """Cosines less the margin: (B, 1) -> (B, 1)."""
        return targets - self.cos_margin
