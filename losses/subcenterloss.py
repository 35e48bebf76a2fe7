"""Sub-centre ArcFace loss."""

from __future__ import annotations

from torch import Tensor

from metric_learning.losses.classes import TargetMarginLoss, add_angle


class SubCenterLoss(TargetMarginLoss):
    """ArcFace with several centres per class, of which the closest counts.

    L = mean_i -log softmax(s c_i)[y_i], c_ij = max_k cos(x_i, w_jk) for j != y_i, and the same with
    the angle enlarged by m for j = y_i (past pi as in ArcMarginLoss).
    Sub-center ArcFace (Deng et al. 2020), eq. 3, https://doi.org/10.1007/978-3-030-58621-8_43.

    Args:
        scale: factor s on the cosines.
        arc_margin: angle m added at the target class, in radians.
        sub_centers: centres K of each class.

    Shape, errors and the arguments for C and D are those of `CosineLoss`.
    """

    def __init__(
        self,
        class_dim: int,
        embedding_size: int,
        scale: float = 64.0,
        arc_margin: float = 0.5,
        sub_centers: int = 3,
    ) -> None:
        super().__init__(class_dim, embedding_size, scale, sub_centers)
        self.arc_margin = arc_margin

    def cosines(self, embeddings: Tensor) -> Tensor:
        """Return the cosines (B, C) of embeddings (B, D) to the closest centre of each class."""
        return super().cosines(embeddings).amax(2)

    def add_margin(self, targets: Tensor) -> Tensor:
        """Cosines of the angles enlarged by the margin: (B, 1) -> (B, 1)."""
        return add_angle(targets, self.arc_margin)
