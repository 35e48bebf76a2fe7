"""Additive angular margin loss (ArcFace)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losses.functional import (
    change_targets,
    check_batch,
    check_classes,
    cross_entropy,
    draw_xavier_uniform,
    full_precision,
)


class ArcMarginLoss(nn.Module):
    """Cross-entropy of scaled cosines, with an angle added at the target class.

    L = mean_i -log softmax(s * c_i)[y_i], c_ij = cos(x_i, w_j) for j != y_i and
    c_ij = cos(angle(x_i, w_j) + m) for j = y_i. Where the angle would pass pi (cos <= cos(pi - m)),
    c = cos - m sin(pi - m) instead; with the easy margin the angle is added only where cos > 0.
    ArcFace (Deng et al. 2019), section 3, https://arxiv.org/abs/1801.07698.

    Args:
        class_dim: number of training classes C.
        embedding_size: dimension D of the embeddings.
        arc_scale: factor s on the cosines.
        arc_margin: angle m added at the target class, in radians.
        arc_easy_margin: add the angle only where the cosine is positive.

    Shape:
        embeddings: (B, D) float, normalised here.
        labels: (B,) int64 in 0..C-1.
        returns: loss () float32, logits (B, C) float32 with scale and margin.

    Raises:
        ValueError: a shape does not fit, or a label is outside 0..C-1.

    Differs from the reference: not at all; its limit on a cost is kept
    (`functional.cross_entropy`).
    """

    def __init__(
        self,
        class_dim: int,
        embedding_size: int,
        arc_scale: float = 80.0,
        arc_margin: float = 0.15,
        arc_easy_margin: bool = False,
    ) -> None:
        super().__init__()
        self.arc_scale = arc_scale
        self.arc_margin = arc_margin
        self.arc_easy_margin = arc_easy_margin
        self.weight = nn.Parameter(torch.empty(class_dim, embedding_size))  # CxD
        self.draw_weight(self.weight, class_dim)

    def draw_weight(self, rows: Tensor, class_dim: int) -> None:
        """Fill rows (n, D) of the weight of `class_dim` classes with initial values."""
        draw_xavier_uniform(rows, class_dim)

    def class_scores(self, embeddings: Tensor) -> Tensor:
        """Return the scaled cosines (B, C) of embeddings (B, D), without margin."""
        return self.arc_scale * self._cosines(embeddings)

    def _cosines(self, embeddings: Tensor) -> Tensor:
        return F.linear(F.normalize(full_precision(embeddings)), F.normalize(self.weight))

    def logits(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the margined, scaled logits (B, C), see `losses.SplittableLoss`."""
        return self.arc_scale * change_targets(self._cosines(embeddings), labels, self._add_margin)

    def _add_margin(self, targets: Tensor) -> Tensor:
        """Cosines of the angles enlarged by the margin: (B, 1) -> (B, 1)."""
        sines = torch.sqrt(1.0 - targets.square() + 1e-6)
        shifted = targets * math.cos(self.arc_margin) - sines * math.sin(self.arc_margin)
        if self.arc_easy_margin:
            return torch.where(targets > 0, shifted, targets)
        threshold = math.cos(math.pi - self.arc_margin)
        fallback = targets - self.arc_margin * math.sin(math.pi - self.arc_margin)
        return torch.where(targets > threshold, shifted, fallback)

    def forward(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean loss and the margined, scaled logits (B, C)."""
        check_batch(embeddings, labels)
        check_classes(labels, len(self.weight))
        logits = self.logits(embeddings, labels)
        return cross_entropy(logits, labels), logits
