"""The three losses of the reference's first version, v1, which differ from those of today.

As at tag v0.15.0-rc0 of PaddlePaddle/models, in fluid/metric_learning.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from metric_learning.losses.emlloss import EmlLoss
from metric_learning.losses.functional import (
    block_columns,
    check_batch,
    check_blocks,
    normalised,
    rooted,
    squared_distances,
)
from metric_learning.losses.quadrupletloss import QuadrupletLoss
from metric_learning.losses.tripletloss import TripletLoss


class TripletV1Loss(TripletLoss):
    """Hinge on distances of given (anchor, positive, negative) triples.

    L = mean_i max(0, |a_i - p_i| - |a_i - n_i| + margin), rows on the unit sphere: as TripletLoss,
    but that the distances are not squared. The gradient of a distance of 0 is 0.

    Args:
        margin: required gap in Euclidean distance; 0..2 is meaningful.

    Shape and errors are those of TripletLoss.
    """

    def distances(self, embeddings: Tensor, others: Tensor) -> Tensor:
        """Return the Euclidean distance of each row to its partner: (T, D), (T, D) -> (T,)."""
        return rooted(super().distances(embeddings, others))


class QuadrupletV1Loss(QuadrupletLoss):
    """Hinge between the farthest positive pair and the closest negative pair of a batch.

    L = max(0, max_{same class} |x_i - x_j| - min_{other class} |x_i - x_j| + margin), one scalar
    per batch, rows on the unit sphere: as QuadrupletLoss, but that the distances are not squared,
    and that of several pairs that are an extreme the first counts alone, once. The gradient of a
    distance of 0 is 0.

    Args:
        margin: required gap in Euclidean distance; 0..2 is meaningful.
        samples_each_class: images of one class in a row (K).

    Shape and errors are those of QuadrupletLoss.
    """

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the hinge of the batch's two extremes."""
        check_batch(embeddings, labels)
        check_blocks(labels, self.samples_each_class)
        embeddings = normalised(embeddings)
        frozen = squared_distances(embeddings.detach())  # BxB
        positives, negatives = block_columns(len(labels), self.samples_each_class, frozen.device)
        farthest = frozen.gather(1, positives).argmax()
        closest = frozen.gather(1, negatives).argmin()

        rows = torch.stack([farthest // positives.shape[1], closest // negatives.shape[1]])
        columns = torch.stack([positives.take(farthest), negatives.take(closest)])
        first, second = embeddings[rows], embeddings[columns]  # 2xD
        to_positive, to_negative = rooted((first - second).square().sum(1))
        return F.relu(to_positive - to_negative + self.margin)


class EmlV1Loss(EmlLoss):
    """Smooth penalty on each anchor's gap between its farthest positive and closest negative.

    As EmlLoss, but that the anchor itself, at distance 0, is one of its positives: the mean in
    theta is over K of them. Embeddings are raw and distances squared, as there.

    Args:
        samples_each_class: images of one class in a row (K).

    Shape and errors are those of EmlLoss.
    """

    def to_positives(self, distances: Tensor) -> Tensor:
        """Return squared distances of each anchor to itself and to its positives, (B, K)."""
        return F.pad(distances, (1, 0))
