"""Recall@k surrogate loss."""

from __future__ import annotations

import torch
from torch import Tensor

from metric_learning.losses.functional import check_above_zero, mean_or_zero, sent
from metric_learning.losses.pairs import LabelLoss, Pairs, soft_ranks


class RecallLoss(LabelLoss):
    """One minus the recall at several k of every image as a query, with smooth ranks and counts.

    L = mean_q mean_k 1 - min(k, sum_{p in P_q} sigmoid((k - r(p)) / u)) / min(k, |P_q|);
    r(p) = 1 + sum_{j != p} sigmoid((s_qj - s_qp) / t) is the rank of p, s the cosine.
    Recall@k Surrogate Loss with Large Batches and Similarity Mixup (Patel et al. 2022), section
    3.2, https://arxiv.org/abs/2108.11179.

    Args:
        recall_ks: the k whose recall is averaged.
        rank_temperature: temperature t of the ranks, in cosine; 0 would be exact ranks.
        recall_temperature: temperature u of the decision whether a rank is within k, in ranks.

    Shape: that of `LabelLoss`; a ValueError where a temperature is 0, or a k is below 1.

    It takes B^2 (K - 1) numbers. Queries without a positive or a negative do not count; a k beyond
    the number of references counts as that number, as in the authors' code. Differs from it: the
    query is not ranked itself; similarity mixup is not here.
    """

    def __init__(
        self,
        recall_ks: tuple[int, ...] = (1, 2, 4, 8, 16),
        rank_temperature: float = 0.01,
        recall_temperature: float = 1.0,
    ) -> None:
        super().__init__()
        check_above_zero(rank_temperature=rank_temperature, recall_temperature=recall_temperature)
        if not recall_ks or min(recall_ks) < 1:
            raise ValueError(f"expected recall_ks of at least 1, found {recall_ks}")
        self.recall_ks = recall_ks
        self.rank_temperature = rank_temperature
        self.recall_temperature = recall_temperature

    def compare(self, pairs: Pairs) -> Tensor:
        """Return the mean of one minus the recall."""
        pairs = pairs.complete()
        rows, ranks, _ = soft_ranks(pairs, self.rank_temperature)
        ks = sent(torch.tensor(self.recall_ks, dtype=ranks.dtype), ranks.device)
        ks = ks.clamp(max=len(pairs.references))
        is_within = torch.sigmoid((ks - ranks[:, None]) / self.recall_temperature)  # TxR
        num_positives = pairs.is_positive.sum(1)[:, None]
        found = torch.zeros(len(num_positives), len(ks), dtype=ranks.dtype, device=ranks.device)
        found = torch.minimum(found.index_add(0, rows, is_within), ks)
        return mean_or_zero(1.0 - (found / torch.minimum(num_positives, ks)).mean(1))
