"""A loss of stage 2 beside one of stage 1: of a new class layer, or of that which is kept."""

from __future__ import annotations

from torch import Tensor, nn


class JointLoss(nn.Module):
    """A metric loss plus alpha times the loss of a class layer.

    L = metric_loss(x, y) + alpha * class_loss(x, y).
    v1 of PaddleCV/metric_learning, where the class layer is a new softmax.

    Args:
        metric_loss: a stage-2 loss.
        class_layer: a stage-1 loss of C classes, with its weights.
        alpha: weight of the class layer's loss.

    Shape:
        embeddings: (B, D) float.
        labels: (B,) int64 in 0..C-1, in the order that the metric loss asks for.
        returns: loss (), its parts metric loss () and class loss (), all float32, and the logits
            (B, C) of the class layer.

    Raises:
        ValueError: as the metric loss, or a label is outside 0..C-1.
    """

    def __init__(self, metric_loss: nn.Module, class_layer: nn.Module, alpha: float) -> None:
        super().__init__()
        self.metric_loss = metric_loss
        self.class_layer = class_layer
        self.alpha = alpha

    def forward(
        self, embeddings: Tensor, labels: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Return the loss, and the metric loss, the class loss and the logits."""
        metric = self.metric_loss(embeddings, labels)
        of_classes, logits = self.class_layer(embeddings, labels)
        return metric + self.alpha * of_classes, (metric, of_classes, logits)
