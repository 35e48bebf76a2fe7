"""Smooth average precision loss."""

from __future__ import annotations

import torch
from torch import Tensor

from metric_learning.losses.functional import check_above_zero, mean_or_zero
from metric_learning.losses.pairs import LabelLoss, Pairs, soft_ranks


class SmoothApLoss(LabelLoss):
    """One minus the average precision of every image as a query, with smooth ranks.

    L = mean_q 1 - 1/|P_q| sum_{p in P_q} r_P(p) / r(p); r and r_P are the ranks of p among all
    other images and among the positives, r(p) = 1 + sum_{j != p} sigmoid((s_qj - s_qp) / t), s the
    cosine.
    Smooth-AP: Smoothing the Path Towards Large-Scale Image Retrieval (Brown et al. 2020), eq. 7,
    https://arxiv.org/abs/2007.12163.

    Args:
        rank_temperature: temperature t of the ranks, in cosine; 0 would be exact ranks.

    Shape: that of `LabelLoss`; a ValueError where the temperature is 0.

    It takes B^2 (K - 1) numbers. Queries without a positive or a negative do not count. Differs
    from the authors' code: the query is no positive of its own, and classes may differ in size.
    """

    def __init__(self, rank_temperature: float = 0.01) -> None:
        super().__init__()
        check_above_zero(rank_temperature=rank_temperature)
        self.rank_temperature = rank_temperature

    def compare(self, pairs: Pairs) -> Tensor:
        """Return the mean of one minus the average precision."""
        pairs = pairs.complete()
        rows, ranks, among_positives = soft_ranks(pairs, self.rank_temperature)
        num_positives = pairs.is_positive.sum(1)
        sums = torch.zeros(len(num_positives), dtype=ranks.dtype, device=ranks.device)
        sums = sums.index_add(0, rows, among_positives / ranks)
        return mean_or_zero(1.0 - sums / num_positives)
