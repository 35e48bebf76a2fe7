"""Triplet loss on triples that are mined in a batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from metric_learning.losses.functional import euclidean, mean_where
from metric_learning.losses.mining import MINERS
from metric_learning.losses.pairs import LabelLoss, Pairs

DEFAULT_MARGIN = 0.1


class BatchTripletLoss(LabelLoss):
    """Hinge or soft margin on the distances of triples that are mined in the batch.

    L = mean max(0, |a - p|^2 - |a - n|^2 + margin), or with the soft margin
    L = mean log(1 + exp(|a - p| - |a - n|)), rows on the unit sphere.
    In Defense of the Triplet Loss (Hermans et al. 2017), section 2, https://arxiv.org/abs/1703.07737
    (all, hard, soft margin); FaceNet (Schroff et al. 2015), section 3.2,
    https://arxiv.org/abs/1503.03832 (semihard); Sampling Matters (Wu et al. 2017), section 4.1,
    https://arxiv.org/abs/1706.07567 (distance).

    Args:
        mining: triples: all; hard, each anchor's farthest positive and closest negative; semihard,
            each positive pair and the closest negative beyond it; distance, each positive pair and
            a negative drawn so that all distances are about equally likely.
        margin: required gap in squared Euclidean distance; 0..4 is meaningful.
        soft_margin: log(1 + exp(gap)) of Euclidean distances instead of the hinge, without a
            margin.

    Shape: that of `LabelLoss`; a ValueError where mining is none of these, or there are both a soft
    margin and a margin.

    Of all triples those count in the mean that cost something ("batch all, nonzero"); it takes
    B x K x M numbers. Differs from the papers: Hermans et al. do not normalise the embeddings and
    take the hinge of Euclidean distances, not squared; FaceNet's batches are larger.
    """

    def __init__(
        self, mining: str = "hard", margin: float = DEFAULT_MARGIN, soft_margin: bool = False
    ) -> None:
        super().__init__()
        if mining not in MINERS:
            raise ValueError(f"expected mining of {', '.join(MINERS)}, found {mining}")
        if soft_margin and margin != DEFAULT_MARGIN:
            raise ValueError(f"margin {margin:g} is not used with soft_margin: leave one out")
        self.mining = mining
        self.margin = margin
        self.soft_margin = soft_margin

    def compare(self, pairs: Pairs) -> Tensor:
        """Return the mean cost of the mined triples."""
        to_positive, to_negative = MINERS[self.mining](pairs.complete())
        is_triple = to_negative != torch.inf
        if self.soft_margin:
            costs = F.softplus(euclidean(to_positive) - euclidean(to_negative))
            return mean_where(costs, is_triple)
        costs = F.relu(to_positive - to_negative + self.margin)
        return mean_where(costs, costs > 0 if self.mining == "all" else is_triple)
