"""The loss of a run, with what lies around it: a scale, a memory, a class layer, a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from metric_learning.common.sizes import shape_flag, size_text
from metric_learning.engine.embed.class_layer import build_layer
from metric_learning.engine.embed.embedder import load
from metric_learning.engine.options.parts import LossOptions, MachineOptions, TeacherOptions
from metric_learning.engine.options.training_table import DERIVED_OPTIONS
from metric_learning.engine.parallel.devices import casting
from metric_learning.engine.parallel.sharded_head import build_sharded_loss
from metric_learning.engine.parallel.world import World
from metric_learning.losses import build_loss, loss_options
from metric_learning.losses.jointloss import JointLoss
from metric_learning.losses.memory import CrossBatchMemory
from metric_learning.losses.pairs import LabelLoss
from metric_learning.losses.scaledloss import ScaledLoss
from metric_learning.losses.similaritydistillation import SimilarityDistillation
from metric_learning.losses.softmaxloss import SoftmaxLoss
from metric_learning.models import EmbeddingModel
from metric_learning.models.weights.fingerprint import hash_weights
from metric_learning.reader.batches.loader import Batch, to_inputs
from metric_learning.reader.preprocessing import Preprocessing


def complete_options(loss: LossOptions, embedding_size: int) -> dict[str, Any]:
    """Return the options of a loss and those that it needs of data and model."""
    derived = dict(zip(DERIVED_OPTIONS, (loss.class_dim, embedding_size), strict=True))
    known = loss_options(loss.loss_name)
    needed = [
        name for name in derived if name in known and known[name].default is known[name].empty
    ]
    return {**loss.options, **{name: derived[name] for name in needed}}


def build_criterion(
    loss: LossOptions, embedding_size: int, accumulation_steps: int, world: World
) -> nn.Module:
    """Build a loss; in stage 2 with what lies around it, if any, or ValueError."""
    options = complete_options(loss, embedding_size)
    if loss.shard_head:
        return build_sharded_loss(world, loss.loss_name, **options)

    criterion = build_loss(loss.loss_name, **options)
    if loss.xbm_size:
        assert isinstance(criterion, LabelLoss)
        start = loss.xbm_start * accumulation_steps
        criterion = CrossBatchMemory(criterion, embedding_size, loss.xbm_size, start)
    if loss.normalize_embeddings:  # of what is remembered too
        criterion = ScaledLoss(criterion, loss.embedding_scale or 1.0)
    if loss.alpha:
        layer: nn.Module = SoftmaxLoss(
            loss.class_dim, embedding_size, class_dropout=loss.class_dropout
        )
        criterion = JointLoss(criterion, layer, loss.alpha)
    if loss.kept:
        layer = build_layer(loss.kept, loss.class_dim, embedding_size)
        criterion = JointLoss(criterion, layer, loss.keep_loss)
    return criterion


def scaled_loss_of(criterion: nn.Module) -> ScaledLoss | None:
    """Return the loss of --normalize_embeddings within a criterion, if any."""
    return next((part for part in criterion.modules() if isinstance(part, ScaledLoss)), None)


def scale_options(criterion: nn.Module) -> dict[str, Any]:
    """Return the flags that a scaled loss within a criterion stands for, if any."""
    loss = scaled_loss_of(criterion)
    if loss is None:
        return {}
    return {"normalize_embeddings": True, "embedding_scale": float(f"{float(loss.scale):.6g}")}


@dataclass(frozen=True)
class Teacher:
    """A frozen network, and what a training pays where its similarities differ from it.

    The images of a process are compared among themselves, in each part of a batch.

    Attributes:
        digest: fingerprint of its weights.
    """

    model: EmbeddingModel
    loss: SimilarityDistillation
    weight: float
    digest: str
    machine: MachineOptions

    def join(
        self,
        loss: Tensor,
        figures: dict[str, Tensor],
        embeddings: Tensor,
        chunks: Sequence[Batch],
        preprocessing: Preprocessing,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss (), and the figures, of embeddings (B, D) with the divergence added."""
        targets = torch.cat([self.embed(chunk, preprocessing) for chunk in chunks])  # BxE
        divergence = self.loss(embeddings, targets)
        return loss + self.weight * divergence, figures | {"loss_distill": divergence.detach()}

    @torch.no_grad()
    def embed(self, batch: Batch, preprocessing: Preprocessing) -> Tensor:
        """Return embeddings (B, E) of the student's crops, normalised as the teacher is used to."""
        own = replace(preprocessing, mean=self.model.mean, std=self.model.std)
        machine = self.machine
        with casting(machine.device, machine.amp_dtype, machine.tf32):
            embeddings: Tensor = self.model(to_inputs(batch, own, machine.device))
        return embeddings.float()


def load_teacher(
    options: TeacherOptions, image_size: tuple[int, int], machine: MachineOptions
) -> Teacher | None:
    """Load --teacher, if any; ValueError where it says of no model, or takes other images."""
    if options.teacher is None:
        return None
    model = load(options.teacher, device=str(machine.device)).model
    if model.image_size != image_size:
        raise ValueError(
            f"--teacher={options.teacher} takes images of {size_text(model.image_size)}, this "
            f"training has {size_text(image_size)}: give {shape_flag(model.image_size)}"
        )
    loss = SimilarityDistillation(options.distill_temperature)
    digest = hash_weights(options.teacher)
    return Teacher(model.requires_grad_(False), loss, options.distill_weight, digest, machine)
