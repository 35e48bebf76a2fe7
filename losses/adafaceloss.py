"""AdaFace loss: a margin that adapts to the quality of an image, told by its feature norm."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from metric_learning.losses.classes import CosineLoss, angles
from metric_learning.losses.functional import change_targets, check_above_zero, row_norms

LOWEST_NORM = 0.001
SMALLEST_ANGLE = 0.001


class AdaFaceLoss(CosineLoss):
    """Cross-entropy of scaled cosines, with a margin at the target that depends on |x|.

    L = mean_i -log softmax(s c_i)[y_i], c_ij = cos(a_ij) for j != y_i and
    c_ij = cos(a_ij - m q_i) - (m + m q_i) for j = y_i, a_ij the angle between x_i and w_j and
    q_i = clip((|x_i| - mean) / (std / h), -1, 1), without gradient. Mean and standard deviation of
    the norms run over the batches; the enlarged angle stays inside 0..pi.
    AdaFace (Kim et al. 2022), eq. 10 to 14, and the authors' code, https://arxiv.org/abs/2204.00964.

    Args:
        scale: factor s on the cosines.
        ada_margin: margin m, in radians and in cosine.
        ada_concentration: factor h on the norms' distance from their mean, in deviations.
        ada_norm_limit: norm from which on all count as equal.
        ada_norm_mean: mean of the norms that the running one begins with.
        ada_norm_std: standard deviation of the norms that the running one begins with.
        ada_momentum: share of the newest batch in the running statistics, 0 to 1.

    Shape, errors and the arguments for C and D are those of `CosineLoss`.

    The last four defaults are the authors', for networks of faces: norms of about 20. Features of
    norms near the limit or above it (2048 dimensions without an embedding layer may have some) need
    a higher one; with a momentum of 1 the statistics are those of the batch.

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
        ada_norm_limit: float = 100.0,
        ada_norm_mean: float = 20.0,
        ada_norm_std: float = 100.0,
        ada_momentum: float = 0.01,
    ) -> None:
        check_above_zero(ada_norm_limit=ada_norm_limit)
        if not 0 <= ada_momentum <= 1:
            raise ValueError(f"expected ada_momentum of 0 to 1, found {ada_momentum:g}")
        super().__init__(class_dim, embedding_size, scale)
        self.ada_margin = ada_margin
        self.ada_concentration = ada_concentration
        self.ada_norm_limit = ada_norm_limit
        self.ada_momentum = ada_momentum
        self.register_buffer("running_mean", torch.tensor(float(ada_norm_mean)))
        self.register_buffer("running_std", torch.tensor(float(ada_norm_std)))

    def margined(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the logits (B, C); in training mode, after an update of the statistics."""
        norms = row_norms(embeddings.detach()).clamp(LOWEST_NORM, self.ada_norm_limit)  # Bx1
        if self.training and len(norms) > 1:
            is_finite = norms.isfinite().all()  # where they are not, nothing moves
            for running, value in (
                (self.running_mean, norms.mean()),
                (self.running_std, norms.std()),
            ):
                running.lerp_(torch.where(is_finite, value.to(running), running), self.ada_momentum)
        quality = (norms - self.running_mean) / (self.running_std + 1e-3)
        quality = (self.ada_concentration * quality).clamp(-1.0, 1.0)

        def add_margin(targets: Tensor) -> Tensor:
            moved = angles(targets) - self.ada_margin * quality
            moved = moved.clamp(SMALLEST_ANGLE, math.pi - SMALLEST_ANGLE)
            return moved.cos() - self.ada_margin * (1.0 + quality)

        return self.scale * change_targets(self.cosines(embeddings), labels, add_margin)
