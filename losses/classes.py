"""Base classes of the losses of stage 1 that are computed from cosines to class weights."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metric_learning.losses.functional import (
    change_targets,
    checked_classes,
    cross_entropy,
    normalised,
)

LOWEST_SCALE = 1.0


class CosineLoss(nn.Module):
    """Base of losses of cosines to class weights: the cross-entropy of logits made of them.

    A subclass changes the cosines in `margined`. Its `logit_floor` is that of
    `functional.cross_entropy`: none, but in the reference's own loss.

    Args:
        class_dim: number of training classes C.
        embedding_size: dimension D of the embeddings.
        scale: factor on the cosines.
        num_centers: weights K that each class has; 0: one, without a dimension of its own.

    Shape:
        embeddings: (B, D) float, normalised here.
        labels: (B,) int64 in 0..C-1.
        returns: loss () float32, logits (B, C) float32 that it compares.

    Raises:
        ValueError: a shape does not fit, or a label is outside 0..C-1.
    """

    logit_floor = -math.inf
    directions: Tensor | None = None  # of the class weights, where `fixed_directions` keeps them

    def __init__(
        self, class_dim: int, embedding_size: int, scale: float, num_centers: int = 0
    ) -> None:
        super().__init__()
        self.scale = scale
        centers = (num_centers,) if num_centers else ()
        self.weight = nn.Parameter(torch.empty(class_dim, *centers, embedding_size))  # Cx(Kx)D
        self.draw_weight(self.weight, class_dim)

    def draw_weight(self, rows: Tensor, class_dim: int) -> None:
        """Fill rows (n, D) as `nn.init.xavier_uniform_` fills those of all `class_dim` classes.

        Rows (n, K, D) are filled within the same bound.
        """
        bound = math.sqrt(3.0) * math.sqrt(2.0 / (class_dim + rows.shape[-1]))
        nn.init.uniform_(rows, -bound, bound)

    def cosines(self, embeddings: Tensor) -> Tensor:
        """Return the cosines (B, C) or (B, C, K) of embeddings (B, D) to the class weights."""
        weight = self.directions
        if weight is None:
            weight = F.normalize(self.weight, dim=-1)
        flat = F.linear(normalised(embeddings), weight.flatten(0, -2))
        return flat.view(-1, *self.weight.shape[:-1])

    def class_scores(self, embeddings: Tensor) -> Tensor:
        """Return the scaled cosines (B, C) of embeddings (B, D), without margin."""
        return self.scale * self.cosines(embeddings)

    def margined(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the logits (B, C) that the loss compares: with its scale and margin, if any."""
        raise NotImplementedError

    def forward(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean loss and the logits (B, C) that it compares."""
        labels = checked_classes(embeddings, labels, len(self.weight))
        logits = self.margined(embeddings, labels)
        return cross_entropy(logits, labels, floor=self.logit_floor), logits


@contextlib.contextmanager
def fixed_directions(layer: nn.Module) -> Iterator[None]:
    """Normalise the class weights in a layer once for all that is computed of it meanwhile.

    The weights must not change until then.
    """
    losses = [module for module in layer.modules() if isinstance(module, CosineLoss)]
    for loss in losses:
        loss.directions = F.normalize(loss.weight, dim=-1).detach()
    try:
        yield
    finally:
        for loss in losses:
            loss.directions = None


class TargetMarginLoss(CosineLoss):
    """Base of cosine losses whose margin looks at one image and one class, see SplittableLoss.

    A subclass changes the cosine of an image's own class in `add_margin`, which may leave it.
    """

    def add_margin(self, targets: Tensor) -> Tensor:
        """Cosines with margin: (B, 1) -> (B, 1)."""
        raise NotImplementedError

    def logits(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the margined, scaled logits (B, C), see `losses.SplittableLoss`."""
        return self.scale * change_targets(self.cosines(embeddings), labels, self.add_margin)

    def margined(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the margined, scaled logits (B, C)."""
        return self.logits(embeddings, labels)


def fixed_scale(class_dim: int) -> float:
    """Return the scale of cosines that fits so many classes C: sqrt(2) log(C - 1), at least 1.

    AdaCos (Zhang et al. 2019), eq. 12, https://arxiv.org/abs/1905.00292.
    """
    return max(math.sqrt(2) * math.log(max(class_dim - 1, 1)), LOWEST_SCALE)


def add_angle(cosines: Tensor, margin: float) -> Tensor:
    """Cosines of the angles enlarged by a margin in radians, of any shape; falling all the way.

    Where the angle would pass pi (cos <= cos(pi - m)), it is cos - m sin(pi - m) instead.
    """
    threshold = math.cos(math.pi - margin)
    fallback = cosines - margin * math.sin(math.pi - margin)
    return torch.where(cosines > threshold, rotated(cosines, margin), fallback)


def rotated(cosines: Tensor, margin: float) -> Tensor:
    """Cosines of the angles enlarged by a margin in radians, of any shape, past pi too."""
    sines = torch.sqrt(1.0 - cosines.square() + 1e-6)
    return cosines * math.cos(margin) - sines * math.sin(margin)


def angles(cosines: Tensor) -> Tensor:
    """Angles of cosines in radians, of any shape; the gradient at 0 and pi is 0, not infinite."""
    limit = 1.0 - 1e-6
    return cosines.clamp(-limit, limit).acos()
