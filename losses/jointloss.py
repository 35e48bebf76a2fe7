"""The joint objective of the reference's first version: a metric loss and a class layer."""

from __future__ import annotations

from torch import Tensor, nn

from metric_learning.losses.softmaxloss import SoftmaxLoss


class JointLoss(nn.Module):
    """A metric loss plus alpha times the cross-entropy of a linear class layer.

    L = metric_loss(x, y) + alpha * softmax_loss(x, y).
    v1 of PaddleCV/metric_learning, whose SE-ResNeXt has a dropout of 0.5 before the class layer.

    Args:
        metric_loss: a stage-2 loss.
        class_dim: number of training classes C.
        embedding_size: dimension D of the embeddings.
        alpha: weight of the cross-entropy.
        class_dropout: of the class layer, see SoftmaxLoss.

    Shape:
        embeddings: (B, D) float.
        labels: (B,) int64 in 0..C-1, in the order that the metric loss asks for.
        returns: loss (), its parts metric loss () and cross-entropy (), all float32, and the logits
            (B, C) of the class layer.

    Raises:
        ValueError: as the metric loss, or a label is outside 0..C-1.
    """

    def __init__(
        self,
        metric_loss: nn.Module,
        class_dim: int,
        embedding_size: int,
        alpha: float,
        class_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.metric_loss = metric_loss
        self.class_layer = SoftmaxLoss(class_dim, embedding_size, class_dropout=class_dropout)
        self.alpha = alpha

    def forward(
        self, embeddings: Tensor, labels: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Return the loss, and the metric loss, the cross-entropy and the logits."""
        metric = self.metric_loss(embeddings, labels)
        cross_entropy, logits = self.class_layer(embeddings, labels)
        return metric + self.alpha * cross_entropy, (metric, cross_entropy, logits)
