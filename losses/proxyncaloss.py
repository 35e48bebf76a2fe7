"""Proxy-NCA++ loss."""

from __future__ import annotations

from torch import Tensor

from metric_learning.losses.classes import TargetMarginLoss
from metric_learning.losses.functional import check_above_zero


class ProxyNcaLoss(TargetMarginLoss):
    """Cross-entropy of negative squared distances to one proxy per class.

    L = mean_i -log softmax(-d_i / t)[y_i], d_ij = |x_i - p_j|^2, both on the unit sphere.
    ProxyNCA++ (Teh et al. 2020), eq. 6, https://arxiv.org/abs/2004.01113.

    Args:
        nca_temperature: divisor t of the squared distances.

    Shape, errors and the arguments for C and D are those of `CosineLoss`, but that the
    logits are -d / t; also a ValueError where the temperature is 0.

    The pooling, layer norm and faster proxies of the paper are not part of the loss.
    """

    def __init__(
        self, class_dim: int, embedding_size: int, nca_temperature: float = 1.0 / 9.0
    ) -> None:
        check_above_zero(nca_temperature=nca_temperature)
        super().__init__(class_dim, embedding_size, 1.0 / nca_temperature)

    def cosines(self, embeddings: Tensor) -> Tensor:
        """Return the negative squared distances (B, C) of embeddings (B, D) to the proxies."""
        return 2.0 * super().cosines(embeddings) - 2.0

    def add_margin(self, targets: Tensor) -> Tensor:
        """Distances as they are: (B, 1) -> (B, 1)."""
        return targets
