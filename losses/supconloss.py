"""Supervised contrastive loss."""

from __future__ import annotations

from torch import Tensor

from metric_learning.losses.functional import check_above_zero, log_sum_exp, mean_or_zero
from metric_learning.losses.pairs import LabelLoss, Pairs


class SupConLoss(LabelLoss):
    """Cross-entropy of each anchor's positives over all other images of the batch.

    L = mean_i -1/|P_i| sum_{p in P_i} log(exp(s_ip / t) / sum_{a != i} exp(s_ia / t)), s the
    cosine.
    Supervised Contrastive Learning (Khosla et al. 2020), eq. 2, https://arxiv.org/abs/2004.11362.

    Args:
        temperature: divisor t of the cosines.

    Shape: that of `LabelLoss`; a ValueError where the temperature is 0.

    Anchors without a positive or a negative do not count. Differs from the paper: the images of a
    class take the place of two views of each image, and the sum over anchors is a mean.
    """

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        check_above_zero(temperature=temperature)
        self.temperature = temperature

    def compare(self, pairs: Pairs) -> Tensor:
        """Return the mean cross-entropy of the anchors."""
        pairs = pairs.complete()
        logits = pairs.cosines / self.temperature  # BxM
        total = log_sum_exp(logits, pairs.is_positive | pairs.is_negative)
        to_positives = (logits * pairs.is_positive).sum(1) / pairs.is_positive.sum(1)
        return mean_or_zero(total - to_positives)
