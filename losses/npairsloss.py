"""N-pair loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metric_learning.losses.functional import (
    PADDLE_LOGIT_FLOOR,
    check_batch,
    check_blocks,
    cross_entropy,
    full_precision,
)


class NpairsLoss(nn.Module):
    """Cross-entropy of each class's first image over the second images of all classes.

    L = mean_i -log softmax(a_i P^T)[i] + lambda / 2 * mean_j |x_j|^2, raw embeddings; a_i and p_i
    are the first and second image of class i, x_j runs over all of them.
    Multi-class N-pair loss (Sohn 2016), section 3.2,
    https://papers.nips.cc/paper/6200-improved-deep-metric-learning-with-multi-class-n-pair-loss-objective.

    Args:
        npairs_reg_lambda: factor lambda of the L2 regulariser on the embeddings.
        samples_each_class: images of one class in a row; always 2.

    Shape:
        embeddings: (B, D) float, rows ordered a0 p0 a1 p1 ..., used as they are.
        labels: (B,) int64, checked against that order.
        returns: () float32.

    Raises:
        ValueError: samples_each_class is not 2, B is odd, or the labels are not such pairs.

    Differs from the reference: not at all; its limit on a cost is kept
    (`functional.cross_entropy`).
    """

    reads_raw = True

    def __init__(self, npairs_reg_lambda: float = 0.01, samples_each_class: int = 2) -> None:
        super().__init__()
        if samples_each_class != 2:
            raise ValueError(
                f"npairs compares pairs: expected samples_each_class 2, found {samples_each_class}"
            )
        self.npairs_reg_lambda = npairs_reg_lambda

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy plus the regulariser."""
        check_batch(embeddings, labels)
        check_blocks(labels, 2)
        embeddings = full_precision(embeddings)
        anchors, positives = embeddings[0::2], embeddings[1::2]
        logits = anchors @ positives.T  # PxP
        targets = torch.arange(len(anchors), device=logits.device)
        regulariser = 0.5 * self.npairs_reg_lambda * embeddings.square().sum(1).mean()
        return cross_entropy(logits, targets, floor=PADDLE_LOGIT_FLOOR) + regulariser
