"""Circle loss."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from metric_learning.losses.functional import log_sum_exp, mean_or_zero
from metric_learning.losses.pairs import LabelLoss, Pairs


class CircleLoss(LabelLoss):
    """Soft gap between each anchor's positives and negatives, each weighted by what it lacks.

    L = mean_i log(1 + sum_n exp(g max(0, s_in + m) (s_in - m))
                     * sum_p exp(-g max(0, 1 + m - s_ip) (s_ip - 1 + m))),
    s the cosine; the two max are weights, without gradient.
    Circle Loss: A Unified Perspective of Pair Similarity Optimization (Sun et al. 2020), eq. 6,
    https://arxiv.org/abs/2002.10857.

    Args:
        circle_margin: relaxation m, in cosine: negatives are to be below m, positives above 1 - m.
        circle_scale: factor g on the weighted cosines.

    Shape: that of `LabelLoss`.

    Anchors without a positive or a negative do not count.
    """

    def __init__(self, circle_margin: float = 0.4, circle_scale: float = 80.0) -> None:
        super().__init__()
        self.circle_margin = circle_margin
        self.circle_scale = circle_scale

    def compare(self, pairs: Pairs) -> Tensor:
        """Return the mean cost of the anchors."""
        pairs = pairs.complete()
        cosines, margin = pairs.cosines, self.circle_margin  # BxM
        positive_weights = F.relu(1.0 + margin - cosines.detach())
        negative_weights = F.relu(cosines.detach() + margin)
        lacking = -self.circle_scale * positive_weights * (cosines - (1.0 - margin))
        excess = self.circle_scale * negative_weights * (cosines - margin)
        gaps = log_sum_exp(lacking, pairs.is_positive) + log_sum_exp(excess, pairs.is_negative)
        return mean_or_zero(F.softplus(gaps))
