"""What is trained: network, loss and optimizer, and their state in a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import nn

from metric_learning.engine.parallel.sharded_head import collect_state, own_state
from metric_learning.engine.train.criterion import Teacher
from metric_learning.engine.train.optimizers import restore_optimizer
from metric_learning.models import EmbeddingModel, has_lora, merged_state


@dataclass
class Learner:
    """Network, loss and optimizer of a run.

    Attributes:
        loss_options: those that the loss was built with.
        scaler: of the loss, against underflow in float16; does nothing with other types.
        ema: moving average of `network`, or None.
        teacher: a frozen network that it learns from, or None.
        is_on_features: whether the inputs are features of a backbone that is frozen.
        is_whole: whether the weights are those of a number of whole steps; not within an update.
    """

    model: EmbeddingModel
    criterion: nn.Module
    loss_options: Mapping[str, Any]
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: ModelEmaV3 | None
    teacher: Teacher | None = None
    is_on_features: bool = False
    is_whole: bool = True

    @property
    def network(self) -> nn.Module:
        """What turns a batch into embeddings: the model, or what lies behind a frozen backbone."""
        return self.model.top if self.is_on_features else self.model

    @property
    def tested_model(self) -> EmbeddingModel:
        """The network that is tested and given away: the moving average, where there is one."""
        if self.ema is None:
            return self.model
        return self.model.with_top(self.ema.module) if self.is_on_features else self.ema.module

    def trunk_parameters(self) -> list[nn.Parameter]:
        """Return the weights of the backbone, but for those of the head that lie in it."""
        in_head = {id(parameter) for parameter in self.model.head.parameters()}
        return [p for p in self.model.backbone.parameters() if id(p) not in in_head]

    def split_parameters(self) -> list[nn.Parameter]:
        """Return the weights of which each rank has others: those of a split class layer."""
        is_split = getattr(self.criterion, "is_sharded", False)
        return list(self.criterion.parameters()) if is_split else []

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return the weights that are the same on all ranks."""
        own = [] if self.split_parameters() else list(self.criterion.parameters())
        return [*own, *self.network.parameters()]

    def is_finite(self) -> bool:
        """Whether all weights and statistics of the network are."""
        models = [self.model, *([] if self.ema is None else [self.ema.module])]
        values = [value for model in models for value in model.state_dict().values()]
        verdicts = [value.isfinite().all() for value in values if value.is_floating_point()]
        return bool(torch.stack(verdicts).all())  # one question to the device

    def state(self) -> dict[str, Any]:
        """Return the parts of a checkpoint that hold weights; only rank 0's are whole."""
        criterion_state, optimizer_state = collect_state(self.criterion, self.optimizer)
        has_live = self.ema is not None or has_lora(self.model)

        return {
            "model": merged_state(self.tested_model),
            "live_model": self.model.state_dict() if has_live else None,
            "criterion": criterion_state,
            "optimizer": optimizer_state,
            "scaler": self.scaler.state_dict(),
        }

    def restore(self, checkpoint: Mapping[str, Any]) -> None:
        """Take over the weights of a checkpoint."""
        self.model.load_state_dict(checkpoint.get("live_model") or checkpoint["model"])
        if self.ema is not None:
            self.tested_model.load_state_dict(checkpoint["model"])

        criterion, criterion_state, optimizer_state = own_state(
            self.criterion, self.optimizer, checkpoint["criterion"], checkpoint["optimizer"]
        )
        criterion.load_state_dict(criterion_state)
        restore_optimizer(self.optimizer, optimizer_state)
        if checkpoint.get("scaler"):
            self.scaler.load_state_dict(checkpoint["scaler"])
