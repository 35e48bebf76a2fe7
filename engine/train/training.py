"""All that a run trains with: what a checkpoint is taken from, and given back to."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import nn

from metric_learning.common.log import versions
from metric_learning.engine.parallel.distributed import World
from metric_learning.engine.parallel.sharded_head import collect_state, restore_state
from metric_learning.engine.run.resume import Start
from metric_learning.engine.train.window import Window
from metric_learning.models import EmbeddingModel
from metric_learning.reader import ImageSet
from metric_learning.reader.batches.loader import Sampler
from metric_learning.reader.preprocessing import Preprocessing


@dataclass
class Training:
    """All that a run trains with, and how far it has come.

    Attributes:
        scaler: of the loss, against underflow in float16; does nothing with other types.
        ema: moving average of the network, or None.
        epoch: the steps of the present epoch so far, with --log_epochs.
        step: completed updates.
        best: Recall@1 and step of the best test so far; empty before the first.
        tested: the last step that was tested; -1 before the first test.
        saved: the step of the last.pt that this process wrote; -1 before the first.
    """

    args: Namespace
    world: World
    start: Start
    device: torch.device
    train_index: ImageSet
    test_index: ImageSet | None
    model: EmbeddingModel
    criterion: nn.Module
    loss_options: dict[str, Any]
    sampler: Sampler
    preprocessing: Preprocessing
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: ModelEmaV3 | None
    epoch: Window
    step: int = 0
    best: dict[str, float] = field(default_factory=dict)
    tested: int = -1
    saved: int = -1

    def num_epochs(self, step: int) -> int:
        """Return how many epochs are done after a step: whole numbers of training images."""
        return step * self.args.train_batch_size // len(self.train_index)

    @property
    def tested_model(self) -> EmbeddingModel:
        """The network that is tested and given away: the moving average, where there is one."""
        return self.model if self.ema is None else self.ema.module

    def checkpoint(self) -> dict[str, Any]:
        """Return everything that a resumed run needs, in plain types and tensors.

        All ranks call it together; what rank 0 gets is whole.
        """
        criterion_state, optimizer_state = collect_state(self.criterion, self.optimizer)
        return {
            "model": self.tested_model.state_dict(),
            "live_model": None if self.ema is None else self.model.state_dict(),
            "criterion": criterion_state,
            "optimizer": optimizer_state,
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "best": self.best,
            "tested": self.tested,
            "epoch": self.epoch.state(),
            "meta": self._meta(),
        }

    def _meta(self) -> dict[str, Any]:
        """What is needed to rebuild the model and to say where it comes from."""
        args = self.args
        return {
            "model": args.model,
            "embedding_size": args.embedding_size,
            **self.model.options,
            "image_shape": args.image_shape,
            "mean": self.model.mean,
            "std": self.model.std,
            "dataset": args.dataset,
            "loss": args.loss_name,
            "loss_options": self.loss_options,
            "class_names": list(self.train_index.class_names.values()),
            "step": self.step,
            "flags": vars(args),
            "versions": versions(),
        }

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Take over the state of a checkpoint."""
        self.model.load_state_dict(checkpoint.get("live_model") or checkpoint["model"])
        if self.ema is not None:
            self.ema.module.load_state_dict(checkpoint["model"])
        restore_state(
            self.criterion, self.optimizer, checkpoint["criterion"], checkpoint["optimizer"]
        )
        if checkpoint.get("scaler"):
            self.scaler.load_state_dict(checkpoint["scaler"])
        self.step = checkpoint["step"]
        self.best = checkpoint["best"]
        self.tested = checkpoint.get("tested", self.step)
        self.epoch.restore(checkpoint.get("epoch", {}), self.device)
