"""Center loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metric_learning.losses.functional import full_precision, sent
from metric_learning.losses.softmaxloss import SoftmaxLoss


class CenterLoss(nn.Module):
    """Softmax cross-entropy plus the squared distance of each embedding to the centre of its class.

    L = softmax_loss(x, y) + lambda / 2 mean_i |x_i - c_{y_i}|^2, x not normalised. In training mode
    each batch then moves the centres of its classes, which are no weights and begin at 0:
    c_j <- c_j - a sum_{i: y_i = j} (c_j - x_i) / (1 + n_j), n_j images of class j in the batch.
    A Discriminative Feature Learning Approach for Deep Face Recognition (Wen et al. 2016), eq. 2 to
    5, https://doi.org/10.1007/978-3-319-46478-7_31.

    Args:
        class_dim: number of training classes C.
        embedding_size: dimension D of the embeddings.
        center_weight: weight lambda of the distances.
        center_rate: share a of its distance by which a centre moves, 0 to 1.
        label_smoothing: of the cross-entropy, see SoftmaxLoss.
        class_dropout: before the class layer, see SoftmaxLoss; the centres see the whole embedding.

    Shape:
        embeddings: (B, D) float.
        labels: (B,) int64 in 0..C-1.
        returns: loss () float32, logits (B, C) float32 of the class layer.

    Raises:
        ValueError: as SoftmaxLoss, or a rate is above 1.

    Differs from the paper: a mean over the batch and no sum, as in the authors' Caffe layer, so
    that the weight does not depend on the batch size. An embedding that is not finite moves no
    centre. Of several processes the first one's images move the centres.
    """

    centers: Tensor

    def __init__(
        self,
        class_dim: int,
        embedding_size: int,
        center_weight: float = 0.003,
        center_rate: float = 0.5,
        label_smoothing: float = 0.0,
        class_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= center_rate <= 1:
            raise ValueError(f"expected center_rate of 0 to 1, found {center_rate:g}")
        self.center_weight = center_weight
        self.center_rate = center_rate
        self.class_layer = SoftmaxLoss(class_dim, embedding_size, label_smoothing, class_dropout)
        self.register_buffer("centers", torch.zeros(class_dim, embedding_size))

    @property
    def weight(self) -> nn.Parameter:
        """Weights (C, D) of the class layer."""
        return self.class_layer.weight

    def class_scores(self, embeddings: Tensor) -> Tensor:
        """Return the class logits (B, C) of embeddings (B, D)."""
        return self.class_layer.class_scores(embeddings)

    def forward(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean loss and the logits (B, C); in training mode, then move the centres."""
        loss, logits = self.class_layer(embeddings, labels)
        labels = sent(labels, embeddings.device)
        gaps = full_precision(embeddings) - self.centers[labels]  # BxD
        if self.training:
            self._move(gaps.detach(), labels)
        return loss + 0.5 * self.center_weight * gaps.square().sum(1).mean(), logits

    def _move(self, gaps: Tensor, labels: Tensor) -> None:
        """Move the centres towards embeddings that are so far (B, D) from them."""
        is_finite = gaps.isfinite().all(1, keepdim=True)
        rows = torch.where(is_finite, gaps, 0.0).to(self.centers.dtype)
        sums = torch.zeros_like(self.centers).index_add(0, labels, rows)
        counts = torch.ones_like(self.centers[:, :1])
        counts = counts.index_add(0, labels, is_finite.to(counts.dtype))
        self.centers.add_(self.center_rate * sums / counts)
