"""Multi-similarity loss."""

from __future__ import annotations

import torch
from torch import Tensor

from metric_learning.losses.functional import check_above_zero, log_one_plus_sum_exp, mean_or_zero
from metric_learning.losses.pairs import LabelLoss, Pairs


class MultiSimilarityLoss(LabelLoss):
    """Soft penalties on the cosines of each anchor's informative positive and negative pairs.

    L = mean_i 1/alpha log(1 + sum_p exp(-alpha (s_ip - lambda)))
             + 1/beta log(1 + sum_n exp(beta (s_in - lambda))),
    s the cosine; a positive counts where s_ip < max_n s_in + epsilon, a negative where
    s_in > min_p s_ip - epsilon.
    Multi-Similarity Loss with General Pair Weighting (Wang et al. 2019), eq. 15,
    https://arxiv.org/abs/1904.06627.

    Args:
        ms_alpha: sharpness alpha of the penalty on positive pairs.
        ms_beta: sharpness beta of the penalty on negative pairs.
        ms_lambda: cosine lambda around which pairs are penalised.
        ms_epsilon: slack epsilon of the choice of pairs, in cosine; from 2 on all pairs count.

    Shape: that of `LabelLoss`; a ValueError where alpha or beta is 0.

    Anchors without a positive or a negative do not count; those whose pairs are all easy cost 0.
    """

    def __init__(
        self,
        ms_alpha: float = 2.0,
        ms_beta: float = 50.0,
        ms_lambda: float = 0.5,
        ms_epsilon: float = 0.1,
    ) -> None:
        super().__init__()
        check_above_zero(ms_alpha=ms_alpha, ms_beta=ms_beta)
        self.ms_alpha = ms_alpha
        self.ms_beta = ms_beta
        self.ms_lambda = ms_lambda
        self.ms_epsilon = ms_epsilon

    def compare(self, pairs: Pairs) -> Tensor:
        """Return the mean penalty of the anchors."""
        pairs = pairs.complete()
        cosines = pairs.cosines  # BxM
        frozen = cosines.detach()
        lowest = frozen.masked_fill(~pairs.is_positive, torch.inf).amin(1, keepdim=True)
        highest = frozen.masked_fill(~pairs.is_negative, -torch.inf).amax(1, keepdim=True)
        is_hard_positive = pairs.is_positive & (frozen - self.ms_epsilon < highest)
        is_hard_negative = pairs.is_negative & (frozen + self.ms_epsilon > lowest)
        above = cosines - self.ms_lambda
        positive = log_one_plus_sum_exp(-self.ms_alpha * above, is_hard_positive) / self.ms_alpha
        negative = log_one_plus_sum_exp(self.ms_beta * above, is_hard_negative) / self.ms_beta
        return mean_or_zero(positive + negative)
