"""Proxy-Anchor loss."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from metric_learning.losses.classes import CosineLoss
from metric_learning.losses.functional import (
    check_above_zero,
    checked_classes,
    log_one_plus_sum_exp,
)


class ProxyAnchorLoss(CosineLoss):
    """Soft penalties on the cosines of each proxy to the images of its class and of others.

    L = 1/|P+| sum_{p in P+} log(1 + sum_{i: y_i = p} exp(-a (c_ip - m)))
      + 1/C sum_p log(1 + sum_{i: y_i != p} exp(a (c_ip + m))),
    c_ip = cos(x_i, w_p), P+ the classes of the batch.
    Proxy Anchor Loss (Kim et al. 2020), eq. 4, https://arxiv.org/abs/2003.13911.

    Args:
        scale: factor a on the cosines.
        anchor_margin: margin m, in cosine.

    Shape, errors and the arguments for C and D are those of `CosineLoss`, but that the
    logits are the scaled cosines; also a ValueError where the scale is 0.
    """

    def __init__(
        self, class_dim: int, embedding_size: int, scale: float = 32.0, anchor_margin: float = 0.1
    ) -> None:
        check_above_zero(scale=scale)
        super().__init__(class_dim, embedding_size, scale)
        self.anchor_margin = anchor_margin

    def forward(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss and the scaled cosines (B, C)."""
        labels = checked_classes(embeddings, labels, len(self.weight))
        logits = self.class_scores(embeddings)
        is_own = F.one_hot(labels, len(self.weight)).bool().T  # CxB
        margin = self.scale * self.anchor_margin
        positive = log_one_plus_sum_exp(margin - logits.T, is_own)  # C, 0 if not in the batch
        negative = log_one_plus_sum_exp(margin + logits.T, ~is_own)
        return positive.sum() / is_own.any(1).sum() + negative.mean(), logits
