"""Multiplicative angular margin loss (A-Softmax, SphereFace)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from metric_learning.losses.classes import CosineLoss
from metric_learning.losses.functional import change_targets, row_norms


class SphereFaceLoss(CosineLoss):
    """Cross-entropy of |x| cos, the angle multiplied at the target class.

    L = mean_i -log softmax(|x_i| c_i)[y_i], c_ij = cos(a_ij) for j != y_i and
    c_ij = (l cos(a_ij) + psi(a_ij)) / (1 + l) for j = y_i, a_ij the angle between x_i and w_j,
    psi(a) = (-1)^k cos(m a) - 2k for a in [k pi / m, (k + 1) pi / m]. The weight l of the plain
    cosine falls with the number t of batches, max(l_end, l_start / (1 + v t)), from t = 1 on, as in
    the authors' code; evaluation mode has that of the last batch.
    SphereFace (Liu et al. 2017), eq. 7 and its appendix, https://arxiv.org/abs/1704.08063.

    Args:
        sphere_margin: factor m on the angle, an integer.
        anneal_start: weight l_start of the plain cosine before the first batch.
        anneal_end: weight l_end that is left of it; with both 0 the margin is whole at once.
        anneal_speed: speed v at which it falls, per batch.

    Shape, errors and the arguments for C and D are those of `CosineLoss`; the norm of an embedding
    counts.

    Differs from the authors' code, whose backward pass in Caffe normalises the two coefficients
    that the margin gives x and w, so that its gradient at the target is not that of the loss; here
    it is. At l = 5 theirs is about 0.76 of it.
    """

    num_batches: Tensor

    def __init__(
        self,
        class_dim: int,
        embedding_size: int,
        sphere_margin: int = 4,
        anneal_start: float = 1000.0,
        anneal_end: float = 5.0,
        anneal_speed: float = 0.12,
    ) -> None:
        super().__init__(class_dim, embedding_size, 1.0)
        self.sphere_margin = sphere_margin
        self.anneal_start = anneal_start
        self.anneal_end = anneal_end
        self.anneal_speed = anneal_speed
        self.register_buffer("num_batches", torch.zeros((), dtype=torch.int64))

    def class_scores(self, embeddings: Tensor) -> Tensor:
        """Return |x| cos, (B, C), of embeddings (B, D), without margin."""
        return row_norms(embeddings) * self.cosines(embeddings)

    def margined(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the margined logits (B, C); in training mode, count the batch first."""
        if self.training:
            self.num_batches += 1
        fallen = self.anneal_start / (1 + self.anneal_speed * self.num_batches)
        plain = fallen.clamp(min=self.anneal_end)
        cosines = change_targets(
            self.cosines(embeddings),
            labels,
            lambda targets: (plain * targets + self._psi(targets)) / (1 + plain),
        )
        return row_norms(embeddings) * cosines

    def _psi(self, targets: Tensor) -> Tensor:
        """Return psi of the angles of cosines: (B, 1) -> (B, 1)."""
        margin = self.sphere_margin
        turns = (margin * targets.detach().clamp(-1, 1).acos() / math.pi).floor()
        turns = turns.clamp(max=margin - 1)
        before, multiple = torch.ones_like(targets), targets
        for _ in range(margin - 1):  # cos((n + 1) a) = 2 cos(a) cos(n a) - cos((n - 1) a)
            before, multiple = multiple, 2 * targets * multiple - before
        return (1 - 2 * (turns % 2)) * multiple - 2 * turns
