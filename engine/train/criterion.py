"""The loss of a run, with what lies around it in stage 2: a scale, a memory, a class layer."""

from __future__ import annotations

from typing import Any

from torch import nn

from metric_learning.engine.embed.class_layer import build_layer
from metric_learning.engine.options.parts import LossOptions
from metric_learning.engine.options.training_table import DERIVED_OPTIONS
from metric_learning.engine.parallel.sharded_head import build_sharded_loss
from metric_learning.engine.parallel.world import World
from metric_learning.losses import build_loss, loss_options
from metric_learning.losses.jointloss import JointLoss
from metric_learning.losses.memory import CrossBatchMemory
from metric_learning.losses.pairs import LabelLoss
from metric_learning.losses.scaledloss import ScaledLoss
from metric_learning.losses.softmaxloss import SoftmaxLoss


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
    if loss.normalize_embeddings:
        criterion = ScaledLoss(criterion, loss.embedding_scale or 1.0)
    if loss.xbm_size:
        assert isinstance(criterion, LabelLoss)
        start = loss.xbm_start * accumulation_steps
        criterion = CrossBatchMemory(criterion, embedding_size, loss.xbm_size, start)
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
