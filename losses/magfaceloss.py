"""MagFace loss: margin and a pull on the feature norm, which tells the quality of an image."""

from __future__ import annotations

import torch
from torch import Tensor

from metric_learning.losses.classes import CosineLoss, angles
from metric_learning.losses.functional import change_targets, row_norms


class MagFaceLoss(CosineLoss):
    """Cross-entropy of scaled cosines whose margin grows with |x|, plus a cost of short x.

    L = mean_i -log softmax(s c_i)[y_i] + lambda g(n_i), n_i = |x_i| clamped to l..u;
    c_ij = cos(a_ij) for j != y_i and cos(a_ij + m(n_i)) for j = y_i, a_ij the angle between x_i and
    w_j; m(n) rises linearly from m_l at l to m_u at u; g(n) = 1/n + n/u^2, which falls up to u.
    MagFace: A Universal Representation for Face Recognition and Quality Assessment (Meng et al.
    2021), section 3, and the authors' code, https://arxiv.org/abs/2103.06627.

    Args:
        scale: factor s on the cosines.
        mag_low: norm l up to which all count as equally short.
        mag_high: norm u from which on all count as equally long.
        mag_margin_low: margin m_l at the norm l, in radians.
        mag_margin_high: margin m_u at the norm u, in radians.
        mag_weight: weight lambda of the cost of the norms.

    Shape, errors and the arguments for C and D are those of `CosineLoss`; also a ValueError unless
    0 < l < u.

    As in the authors' code, an own class at more than 90 degrees has no margin, and norms outside
    l..u have no gradient: where all lie outside, choose the limits by the norms of the network. The
    gradient of the angle is 0 where |cos| > 1 - 1e-6.
    """

    def __init__(
        self,
        class_dim: int,
        embedding_size: int,
        scale: float = 64.0,
        mag_low: float = 10.0,
        mag_high: float = 110.0,
        mag_margin_low: float = 0.45,
        mag_margin_high: float = 0.8,
        mag_weight: float = 35.0,
    ) -> None:
        if not 0 < mag_low < mag_high:
            raise ValueError(
                f"expected mag_low above 0 and below mag_high, found {mag_low:g} and {mag_high:g}"
            )
        super().__init__(class_dim, embedding_size, scale)
        self.mag_low = mag_low
        self.mag_high = mag_high
        self.mag_margin_low = mag_margin_low
        self.mag_margin_high = mag_margin_high
        self.mag_weight = mag_weight

    def norms(self, embeddings: Tensor) -> Tensor:
        """Return the norms (B, 1) of embeddings (B, D), within the limits."""
        return row_norms(embeddings).clamp(self.mag_low, self.mag_high)

    def margined(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the margined, scaled logits (B, C)."""
        slope = (self.mag_margin_high - self.mag_margin_low) / (self.mag_high - self.mag_low)
        margins = self.mag_margin_low + slope * (self.norms(embeddings) - self.mag_low)  # Bx1

        def add_margin(targets: Tensor) -> Tensor:
            return torch.where(targets > 0, (angles(targets) + margins).cos(), targets)

        return self.scale * change_targets(self.cosines(embeddings), labels, add_margin)

    def forward(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean loss with the cost of the norms, and the logits (B, C)."""
        loss, logits = super().forward(embeddings, labels)
        norms = self.norms(embeddings)
        return loss + self.mag_weight * (1 / norms + norms / self.mag_high**2).mean(), logits
