"""Combined margin loss: the margins of SphereFace, ArcFace and CosFace at once."""

from __future__ import annotations

from torch import Tensor

from metric_learning.losses.classes import TargetMarginLoss, angles


class CombinedLoss(TargetMarginLoss):
    """Cross-entropy of scaled cosines, with three margins at the target class.

    L = mean_i -log softmax(s c_i)[y_i], c_ij = cos(a_ij) for j != y_i and
    c_ij = cos(m1 a_ij + m2) - m3 for j = y_i, a_ij the angle between x_i and w_j.
    ArcFace (Deng et al. 2019), eq. 4, https://arxiv.org/abs/1801.07698.

    Args:
        scale: factor s on the cosines.
        angle_factor: factor m1 on the angle at the target class.
        arc_margin: angle m2 added at the target class, in radians.
        cos_margin: margin m3 that the cosine of the target class loses.

    Shape, errors and the arguments for C and D are those of `CosineLoss`.

    As in the authors' code, the cosine rises again where the enlarged angle passes pi. The gradient
    is 0 where |cos| > 1 - 1e-6.
    """

    def __init__(
        self,
        class_dim: int,
        embedding_size: int,
        scale: float = 64.0,
        angle_factor: float = 1.0,
        arc_margin: float = 0.3,
        cos_margin: float = 0.2,
    ) -> None:
        super().__init__(class_dim, embedding_size, scale)
        self.angle_factor = angle_factor
        self.arc_margin = arc_margin
        self.cos_margin = cos_margin

    def add_margin(self, targets: Tensor) -> Tensor:
        """Cosines with the three margins: (B, 1) -> (B, 1)."""
        return (self.angle_factor * angles(targets) + self.arc_margin).cos() - self.cos_margin
