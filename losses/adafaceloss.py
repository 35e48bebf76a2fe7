"""AdaFace loss: a margin that adapts to the quality of an image, told by its feature norm."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from metric_learning.losses.classes import CosineLoss, angles
from metric_learning.losses.functional import change_targets, row_norms

MOMENTUM = 0.01  # of the newest batch in the running statistics
NORM_RANGE = (0.001, 100.0)
SMALLEST_ANGLE = 0.001


class AdaFaceLoss(CosineLoss):
    """Cross-entropy of scaled cosines, with a margin at the target that depends on |x|.

    L = mean_i -log softmax(s c_i)[y_i], c_ij = cos(a_ij) for j != y_i and
    c_ij = cos(a_ij - m q_i) - (m + m q_i) for j = y_i, a_ij the angle between x_i and w_j and
    q_i = clip((|x_i| - mean) / (std / h), -1, 1), without gradient. Mean and standard deviation of
    the norms run over the batches, 0.01 of them the newest; the enlarged angle stays inside 0..pi.
    AdaFace (Kim et al. 2022), eq. 10 to 14, and the authors' code, https://arxiv.org/abs/2204.00964.

    Args:
        scale: factor s on the cosines.
        ada_margin: margin m, in radians and in cosine.
        ada_concentration: factor h on the norms' distance from their mean, in deviations.

    Shape, errors and the arguments for C and D are those of `CosineLoss`.

    A batch of one image does not change the running statistics. The gradient is 0 where
    |cos| > 1 - 1e-6.
    """

    running_mean: Tensor
    running_std: Tensor

    def __init__(
        self,
        class_dim: int,
        embedding_size: int,
        scale: float = 64.0,
        ada_margin: float = 0.4,
        ada_concentration: float = 0.333,
    ) -> None:
        super().__init__(class_dim, embedding_size, scale)
        self.ada_margin = ada_margin
        self.ada_concentration = ada_concentration
        self.register_buffer("running_mean", torch.tensor(20.0))  # as in the authors' code
        self.register_buffer("running_std", torch.tensor(100.0))

    def margined(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the logits (B, C); in training mode, after an update of the statistics."""
        norms = row_norms(embeddings.detach()).clamp(*NORM_RANGE)  # Bx1
        if self.training and len(norms) > 1 and bool(norms.isfinite().all()):
            self.running_mean.lerp_(norms.mean().to(self.running_mean), MOMENTUM)
            self.running_std.lerp_(norms.std().to(self.running_std), MOMENTUM)
        quality = (norms - self.running_mean) / (self.running_std + 1e-3)
        quality = (self.ada_concentration * quality).clamp(-1.0, 1.0)

        def add_margin(targets: Tensor) -> Tensor:
            moved = angles(targets) - self.ada_margin * quality
            moved = moved.clamp(SMALLEST_ANGLE, math.pi - SMALLEST_ANGLE)
            return moved.cos() - self.ada_margin * (1.0 + quality)

        return self.scale * change_targets(self.cosines(embeddings), labels, add_margin)
