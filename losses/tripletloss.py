"""Triplet loss on given triples."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from metric_learning.losses.functional import check_batch, normalised, shortened


class TripletLoss(nn.Module):
    """Hinge on squared distances of given (anchor, positive, negative) triples.

    L = mean_i max(0, |a_i - p_i|^2 - |a_i - n_i|^2 + margin), rows on the unit sphere.
    FaceNet (Schroff et al. 2015), section 3.1, https://arxiv.org/abs/1503.03832.

    Args:
        margin: required gap in squared Euclidean distance; 0..4 is meaningful.

    Shape:
        embeddings: (B, D) float, rows ordered a0 p0 n0 a1 p1 n1 ..., normalised here.
        labels: (B,) int64, checked against that order.
        returns: () float32.

    Raises:
        ValueError: B is not a multiple of 3, or a triple's labels are not (c, c, other).

    Differs from the reference: not at all.
    """

    layout = "triples"

    def __init__(self, margin: float = 0.1) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the mean hinge over all triples."""
        check_batch(embeddings, labels)
        if len(labels) == 0 or len(labels) % 3:
            raise ValueError(f"batch of {len(labels)} images is not a positive multiple of 3")
        first, second, third = labels.view(-1, 3).unbind(1)
        if bool((first != second).any()) or bool((first == third).any()):
            raise ValueError(
                "expected triples of labels (anchor, same class, other class), "
                f"found {shortened(labels)}"
            )

        embeddings = normalised(embeddings)
        anchors, positives, negatives = embeddings.view(-1, 3, embeddings.shape[1]).unbind(1)
        to_positive = self.distances(anchors, positives)
        to_negative = self.distances(anchors, negatives)
        return F.relu(to_positive + self.margin - to_negative).mean()

    def distances(self, embeddings: Tensor, others: Tensor) -> Tensor:
        """Return the squared distance of each row to its partner: (T, D), (T, D) -> (T,)."""
        return (embeddings - others).square().sum(1)
