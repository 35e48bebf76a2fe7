"""Variational prototype learning: class weights mixed with remembered embeddings."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from metric_learning.losses.classes import CosineLoss, add_angle
from metric_learning.losses.functional import change_targets, normalised


class VplLoss(CosineLoss):
    """ArcFace whose class weights are mixed with the newest embedding of each class.

    L = mean_i -log softmax(s c_i)[y_i], c_ij = cos(x_i, v_j) for j != y_i, and the same with the
    angle enlarged by m for j = y_i (past pi as in ArcMarginLoss). v_j = (1 - l) w_j / |w_j| + l M_j
    where the memory M_j, the newest embedding of class j on the unit sphere, is at most so many
    batches old, else v_j = w_j. M has no gradient; evaluation mode takes v = w.
    Variational Prototype Learning for Deep Face Recognition (Deng et al. 2021), section 3,
    https://openaccess.thecvf.com/content/CVPR2021/html/Deng_Variational_Prototype_Learning_for_Deep_Face_Recognition_CVPR_2021_paper.html

    Args:
        scale: factor s on the cosines.
        arc_margin: angle m added at the target class, in radians.
        vpl_lambda: share l of the remembered embedding in a prototype, 0 to below 1.
        vpl_start: batches before the memory is used, while embeddings still drift fast.
        vpl_age: batches that an embedding stays in use.

    Shape, errors and the arguments for C and D are those of `CosineLoss`; also a ValueError where
    the share is not below 1.

    A batch meets the memory of the batches before it. Of several images of a class in a batch, the
    last is remembered; one that is not finite is not.
    """

    memory: Tensor
    written: Tensor
    num_batches: Tensor

    def __init__(
        self,
        class_dim: int,
        embedding_size: int,
        scale: float = 64.0,
        arc_margin: float = 0.5,
        vpl_lambda: float = 0.15,
        vpl_start: int = 8000,
        vpl_age: int = 200,
    ) -> None:
        if not 0 <= vpl_lambda < 1:
            raise ValueError(f"expected vpl_lambda of 0 to below 1, found {vpl_lambda:g}")
        super().__init__(class_dim, embedding_size, scale)
        self.arc_margin = arc_margin
        self.vpl_lambda = vpl_lambda
        self.vpl_start = vpl_start
        self.vpl_age = vpl_age
        self.register_buffer("memory", torch.zeros(class_dim, embedding_size))
        self.register_buffer("written", torch.full((class_dim,), -1))  # number of the batch, or -1
        self.register_buffer("num_batches", torch.zeros((), dtype=torch.int64))

    def margined(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the logits (B, C); in training mode, remember the batch afterwards."""
        rows = normalised(embeddings)
        cosines = F.linear(rows, F.normalize(self._prototypes()))
        if self.training:
            self._remember(rows.detach(), labels)
        return self.scale * change_targets(
            cosines, labels, lambda targets: add_angle(targets, self.arc_margin)
        )

    def _prototypes(self) -> Tensor:
        """Return the class weights, mixed with what is remembered and young enough: (C, D)."""
        weight = F.normalize(self.weight)
        if not self.training:
            return weight
        is_young = (self.written >= 0) & (self.num_batches - self.written <= self.vpl_age)
        is_young &= self.num_batches >= self.vpl_start
        share = self.vpl_lambda * is_young[:, None].to(weight.dtype)  # Cx1
        return (1.0 - share) * weight + share * self.memory

    def _remember(self, rows: Tensor, labels: Tensor) -> None:
        """Write the last row of each class into the memory and count the batch."""
        positions = torch.arange(len(labels), device=labels.device)
        positions = torch.where(rows.isfinite().all(1), positions, -1)
        last = torch.full_like(self.written, -1).scatter_reduce(0, labels, positions, "amax")  # C
        is_new = last >= 0
        newest = rows[last.clamp(min=0)].to(self.memory.dtype)  # CxD
        self.memory.copy_(torch.where(is_new[:, None], newest, self.memory))
        self.written.copy_(torch.where(is_new, self.num_batches, self.written))
        self.num_batches += 1
