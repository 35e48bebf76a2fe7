"""Normalised softmax loss."""

from __future__ import annotations

from torch import Tensor

from metric_learning.losses.classes import TargetMarginLoss
from metric_learning.losses.functional import check_above_zero


class NormSoftmaxLoss(TargetMarginLoss):
    """Cross-entropy of cosines over a temperature, without margin.

    L = mean_i -log softmax(c_i / t)[y_i], c_ij = cos(x_i, w_j).
    Classification is a Strong Baseline for Deep Metric Learning (Zhai and Wu 2019), eq. 3,
    https://arxiv.org/abs/1811.12649.

    Args:
        temperature: divisor t of the cosines.

    Shape, errors and the arguments for C and D are those of `CosineLoss`; also a ValueError where
    the temperature is 0.
    """

    def __init__(self, class_dim: int, embedding_size: int, temperature: float = 0.05) -> None:
        check_above_zero(temperature=temperature)
        super().__init__(class_dim, embedding_size, 1.0 / temperature)

    def add_margin(self, targets: Tensor) -> Tensor:
        """Cosines as they are: (B, 1) -> (B, 1)."""
        return targets
