"""Softmax cross-entropy of a linear class layer on the raw embedding."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metric_learning.losses.functional import (
    PADDLE_LOGIT_FLOOR,
    checked_classes,
    cross_entropy,
    full_precision,
)

INITS = ("uniform", "zero")


class SoftmaxLoss(nn.Module):
    """Cross-entropy of a linear class layer with bias on the raw embedding.

    L = mean_i -sum_j t_ij log softmax(x_i W^T + b)[j], x not normalised, t_ij = [j = y_i], smoothed
    (1 - e) [j = y_i] + e / C. In training mode, dropout may stand before the layer.
    Stage 1 of PaddleCV/metric_learning; smoothing: Rethinking the Inception Architecture (Szegedy
    et al. 2016), section 7, https://arxiv.org/abs/1512.00567.

    Args:
        class_dim: number of training classes C.
        embedding_size: dimension D of the embeddings.
        label_smoothing: fraction e of the target that is shared among all classes, 0 to below 1.
        class_dropout: share of the embedding's values that the class layer does not see in
            training, 0 to below 1; the others are enlarged to make up for them.
        init_class_layer: what the weight begins with: uniform, as in the reference, or zero, as in
            A Unifying Mutual Information View (Boudiaf et al. 2020).

    Shape:
        embeddings: (B, D) float.
        labels: (B,) int64 in 0..C-1.
        returns: loss () float32, logits (B, C) float32.

    Raises:
        ValueError: a shape does not fit, a label is outside 0..C-1, or e or the dropout is not
            below 1.

    Differs from the reference: not at all without smoothing (its weight is stored as D x C); its
    limit on a cost is kept (`functional.cross_entropy`). With smoothing there is no such limit:
    every class would meet it.
    """

    def __init__(
        self,
        class_dim: int,
        embedding_size: int,
        label_smoothing: float = 0.0,
        class_dropout: float = 0.0,
        init_class_layer: str = "uniform",
    ) -> None:
        super().__init__()
        if init_class_layer not in INITS:
            raise ValueError(
                f"expected init_class_layer of {', '.join(INITS)}, found {init_class_layer}"
            )

        self.init_class_layer = init_class_layer
        for name, share in (("label_smoothing", label_smoothing), ("class_dropout", class_dropout)):
            if not 0 <= share < 1:
                raise ValueError(f"expected {name} of 0 to below 1, found {share:g}")
        self.label_smoothing = label_smoothing
        self.logit_floor = -math.inf if label_smoothing else PADDLE_LOGIT_FLOOR
        self.dropout = nn.Dropout(class_dropout)
        self.weight = nn.Parameter(torch.empty(class_dim, embedding_size))  # CxD
        self.bias = nn.Parameter(torch.zeros(class_dim))
        self.draw_weight(self.weight, class_dim)

    def draw_weight(self, rows: Tensor, class_dim: int) -> None:
        """Fill rows (n, D) of the weight of `class_dim` classes with initial values."""
        bound = 0.0 if self.init_class_layer == "zero" else rows.shape[1] ** -0.5
        nn.init.uniform_(rows, -bound, bound)

    def class_scores(self, embeddings: Tensor) -> Tensor:
        """Return the class logits (B, C) of embeddings (B, D)."""
        return F.linear(full_precision(embeddings), self.weight, self.bias)

    def logits(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the class logits (B, C), see `losses.SplittableLoss`."""
        return self.class_scores(embeddings)

    def forward(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean loss and the logits (B, C)."""
        labels = checked_classes(embeddings, labels, len(self.weight))
        logits = self.logits(self.dropout(embeddings), labels)
        return cross_entropy(logits, labels, self.label_smoothing, self.logit_floor), logits
