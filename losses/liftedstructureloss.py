"""Lifted structure loss, generalised to several positives."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from metric_learning.losses.functional import euclidean, log_sum_exp, mean_or_zero
from metric_learning.losses.pairs import LabelLoss, Pairs


class LiftedStructureLoss(LabelLoss):
    """Hinge between smooth extremes of each anchor's distances to positives and negatives.

    L = mean_i max(0, log sum_p exp(|x_i - x_p|) + log sum_n exp(m - |x_i - x_n|)), rows on the unit
    sphere.
    In Defense of the Triplet Loss (Hermans et al. 2017), eq. 10, https://arxiv.org/abs/1703.07737,
    after Deep Metric Learning via Lifted Structured Feature Embedding (Oh Song et al. 2016),
    https://arxiv.org/abs/1511.06452.

    Args:
        lifted_margin: margin m that is taken from distances to negatives, Euclidean.

    Shape: that of `LabelLoss`.

    Anchors without a positive or a negative do not count. Differs from the papers: embeddings are
    normalised, and the mean over anchors takes the place of a sum.
    """

    def __init__(self, lifted_margin: float = 1.0) -> None:
        super().__init__()
        self.lifted_margin = lifted_margin

    def compare(self, pairs: Pairs) -> Tensor:
        """Return the mean hinge of the anchors."""
        pairs = pairs.complete()
        distances = euclidean(pairs.squared_distances)  # BxM
        farthest = log_sum_exp(distances, pairs.is_positive)
        closest = log_sum_exp(self.lifted_margin - distances, pairs.is_negative)
        return mean_or_zero(F.relu(farthest + closest))
