"""SoftTriple loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from metric_learning.losses.classes import CosineLoss
from metric_learning.losses.functional import change_targets, check_above_zero, euclidean


class SoftTripleLoss(CosineLoss):
    """Cross-entropy of smooth similarities to several centres per class, which are drawn together.

    L = mean_i -log softmax(s (S_i - m [j = y_i]))[y_i] + tau R,
    S_ij = sum_k softmax_k(c_ijk / g) c_ijk, c_ijk = cos(x_i, w_jk),
    R = sum_j sum_{k < l} |w_jk - w_jl| / (C K (K - 1)), centres on the unit sphere.
    SoftTriple Loss (Qian et al. 2019), eq. 7 to 10, https://arxiv.org/abs/1909.05235.

    Args:
        scale: factor s on the similarities.
        cos_margin: margin m that the similarity to the target class loses.
        soft_centers: centres K of each class.
        soft_temperature: divisor g of the cosines that weigh the centres.
        soft_regularizer: weight tau of the distances between the centres of a class.

    Shape, errors and the arguments for C and D are those of `CosineLoss`; also a ValueError where
    the temperature is 0.
    """

    def __init__(
        self,
        class_dim: int,
        embedding_size: int,
        scale: float = 20.0,
        cos_margin: float = 0.01,
        soft_centers: int = 10,
        soft_temperature: float = 0.1,
        soft_regularizer: float = 0.2,
    ) -> None:
        check_above_zero(soft_temperature=soft_temperature)
        super().__init__(class_dim, embedding_size, scale, soft_centers)
        self.cos_margin = cos_margin
        self.soft_temperature = soft_temperature
        self.soft_regularizer = soft_regularizer

    def cosines(self, embeddings: Tensor) -> Tensor:
        """Return the smooth similarities (B, C) of embeddings (B, D) to the classes."""
        cosines = super().cosines(embeddings)  # BxCxK
        return (F.softmax(cosines / self.soft_temperature, 2) * cosines).sum(2)

    def margined(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the margined, scaled similarities (B, C)."""
        return self.scale * change_targets(
            self.cosines(embeddings), labels, lambda targets: targets - self.cos_margin
        )

    def forward(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean loss with the regulariser, and the logits (B, C)."""
        loss, logits = super().forward(embeddings, labels)
        return loss + self.soft_regularizer * self._spread_of_centers(), logits

    def _spread_of_centers(self) -> Tensor:
        """Half the mean distance between two centres of a class, ()."""
        num_classes, num_centers, _ = self.weight.shape
        if num_centers == 1:
            return self.weight.new_zeros(())
        centers = F.normalize(self.weight, dim=2)
        first, second = torch.triu_indices(num_centers, num_centers, 1, device=centers.device)
        gaps = euclidean((centers[:, first] - centers[:, second]).square().sum(2))
        return gaps.sum() / (num_classes * num_centers * (num_centers - 1))
