"""A loss of raw embeddings, computed of embeddings that all have one length."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metric_learning.losses.functional import normalised


class ScaledLoss(nn.Module):
    """A loss that reads embeddings as they are, on a sphere whose radius is the scale.

    L = metric_loss(scale x / |x|, y). The scale is part of the state dict, and not learned.

    Args:
        metric_loss: a stage-2 loss that reads raw embeddings.
        scale: length of the embeddings that it sees; above 0.

    Shape:
        embeddings: (B, D) float.
        labels: (B,) int64, in the order that the loss asks for.
        returns: () float32.

    Raises:
        ValueError: as the loss.
    """

    scale: Tensor

    def __init__(self, metric_loss: nn.Module, scale: float = 1.0) -> None:
        super().__init__()
        self.metric_loss = metric_loss
        self.register_buffer("scale", torch.tensor(float(scale)))

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of the embeddings at that length."""
        loss: Tensor = self.metric_loss(normalised(embeddings) * self.scale, labels)
        return loss
