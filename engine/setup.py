"""From flags to everything that a training run consists of."""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from timm.utils import ModelEmaV3
from torch import nn

from engine.checkpoints import load_checkpoint
from engine.criterion import build_criterion, check_criterion_flags
from engine.devices import choose_device, place
from engine.distributed import World, join_world
from engine.flags import options_of_loss
from engine.inference import check_image_size, load_split, preprocessing_of
from engine.optimizers import build_optimizer, check_optimizer_flags
from engine.run import log, versions
from losses import ELEM_LOSSES
from models import EmbeddingModel, build_model, load_weights
from reader import Index
from reader.loader import Preprocessing, Sampler

# Maps (labels, args, world) to the sampler of the stage.
MakeSampler = Callable[[np.ndarray, Namespace, World], Sampler]

# Flags that a resumed run must have as its checkpoint has them.
FIXED_FLAGS = (
    *("model", "embedding_size", "loss_name", "class_dim"),
    *("optimizer", "decay_norm_and_bias"),
    *("alpha", "xbm_size", "loss_options"),
)


@dataclass
class Training:
    """All that a run trains with, and how far it has come.

    Attributes:
        step: completed updates.
        scaler: of the loss, against underflow in float16; does nothing with other types.
        ema: moving average of the network, or None.
        best: Recall@1 and step of the best test so far; empty before the first.
    """

    args: Namespace
    world: World
    device: torch.device
    train_index: Index
    test_index: Index | None
    model: EmbeddingModel
    criterion: nn.Module
    loss_options: dict[str, Any]
    sampler: Sampler
    preprocessing: Preprocessing
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: ModelEmaV3 | None
    step: int = 0
    best: dict[str, float] = field(default_factory=dict)

    @property
    def tested_model(self) -> EmbeddingModel:
        """The network that is tested and given away: the moving average, where there is one."""
        return self.model if self.ema is None else self.ema.module

    def checkpoint(self) -> dict[str, Any]:
        """Return everything that a resumed run needs, in plain types and tensors."""
        random_state: dict[str, Any] = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            random_state["cuda"] = torch.cuda.get_rng_state(self.device)
        return {
            "model": self.tested_model.state_dict(),
            "live_model": None if self.ema is None else self.model.state_dict(),
            "criterion": self.criterion.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "best": self.best,
            "random_state": random_state,
            "meta": self._meta(),
        }

    def _meta(self) -> dict[str, Any]:
        """What is needed to rebuild the model and to say where it comes from."""
        args = self.args
        return {
            "model": args.model,
            "embedding_size": args.embedding_size,
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
        self.criterion.load_state_dict(checkpoint["criterion"])
        restore_optimizer(self.optimizer, checkpoint["optimizer"])
        if checkpoint.get("scaler"):
            self.scaler.load_state_dict(checkpoint["scaler"])
        self.step = checkpoint["step"]
        self.best = checkpoint["best"]
        torch.set_rng_state(checkpoint["random_state"]["cpu"])
        if self.device.type == "cuda" and "cuda" in checkpoint["random_state"]:
            torch.cuda.set_rng_state(checkpoint["random_state"]["cuda"], self.device)


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Give an optimizer the state of a checkpoint; its rates, decays and so on are flags.

    Raises:
        ValueError: the state is of other weights.
    """
    settings = [
        {name: value for name, value in group.items() if name != "params"}
        for group in optimizer.param_groups
    ]
    try:
        optimizer.load_state_dict(state)
    except ValueError as error:
        raise ValueError(
            f"the optimizer of the checkpoint is of another kind or version ({error}): give the "
            "checkpoint as --pretrained_model, to start from its weights"
        ) from error
    for group, values in zip(optimizer.param_groups, settings, strict=True):
        group.update(values)


def recompute_activations(model: EmbeddingModel) -> None:
    """Let the backward pass compute activations again instead of keeping them.

    Raises:
        ValueError: the backbone cannot.
    """
    try:
        model.backbone.set_grad_checkpointing(True)  # type: ignore[operator]
    except (AssertionError, AttributeError) as error:
        raise ValueError(f"--with_mem_opt: {model.name} cannot, leave the flag out") from error


def set_up(args: Namespace, given: set[str], make_sampler: MakeSampler) -> Training:
    """Build everything from the flags, and restore the checkpoint where one is named.

    Args:
        args: a value per flag; completed in place.
        given: names of the flags that the user gave.
        make_sampler: builds the sampler of the stage.

    Raises:
        ValueError: flags contradict each other, the data or the checkpoint.
        OSError: a file cannot be read.
    """
    checkpoint = adopt_checkpoint(args, given) if args.checkpoint else None
    world = join_world(args.use_gpu and args.device != "cpu" and torch.cuda.is_available())
    device = choose_device(args, log if world.is_main else lambda line: None, world.local_rank)
    check_schedule(args, given)
    check_criterion_flags(args, given)
    check_optimizer_flags(args, given)
    torch.manual_seed(args.seed)
    train_index = load_split(args, "train")
    test_index = load_split(args, "test") if args.test_iter_step else None
    set_class_dim(args, train_index)
    check_batch_flags(args, world)
    if args.total_iter_num is None:
        args.total_iter_num = math.ceil(args.num_epochs * len(train_index) / args.train_batch_size)
    loss_options = options_of_loss(args, given)
    vars(args).update(loss_options)
    sampler = make_sampler(train_index.labels, args, world)
    model = build_model(args.model, args.embedding_size, image_size=args.image_shape[1])
    check_image_size(model, args.image_shape[1])
    preprocessing = preprocessing_of(args, model)
    args.transform = preprocessing.transform
    if args.pretrained_model and checkpoint is None:
        report = load_weights(model, args.pretrained_model)
        if world.is_main:
            log(f"weights: {report.source}, {len(report.loaded)} tensors loaded")
            if report.missing:
                log(f"weights: {', '.join(report.missing)} not there, starting at random")
    criterion = build_criterion(args, loss_options, model.embedding_size)
    if args.with_mem_opt:
        recompute_activations(model)
    place(model, device)
    criterion.to(device)
    training = Training(
        args=args,
        world=world,
        device=device,
        train_index=train_index,
        test_index=test_index,
        model=model,
        criterion=criterion,
        loss_options=loss_options,
        sampler=sampler,
        preprocessing=preprocessing,
        optimizer=build_optimizer(model, model.embedding, criterion, args),
        scaler=torch.amp.GradScaler(device.type, enabled=args.amp == "float16"),
        ema=ModelEmaV3(model, args.ema_decay, use_warmup=True) if args.ema_decay else None,
    )
    if checkpoint is not None:
        training.restore(checkpoint)
    return training


def adopt_checkpoint(args: Namespace, given: set[str]) -> dict[str, Any]:
    """Read --checkpoint and take the flags that were not given from it.

    Raises:
        ValueError: a given flag contradicts the checkpoint, or it belongs to the other stage.
    """
    checkpoint = load_checkpoint(args.checkpoint)
    flags = checkpoint["meta"]["flags"]
    is_elem = args.loss_name in ELEM_LOSSES
    if (flags["loss_name"] in ELEM_LOSSES) != is_elem:
        script = "train_pair.py" if is_elem else "train_elem.py"
        raise ValueError(
            f"{args.checkpoint} was written by {script} (--loss_name={flags['loss_name']}): "
            "resume it there, or give it as --pretrained_model to start from its weights"
        )
    for name in FIXED_FLAGS:
        if name in given and getattr(args, name) != flags.get(name):
            raise ValueError(
                f"{args.checkpoint} was trained with --{name}={flags.get(name)}, found "
                f"--{name}={getattr(args, name)}: leave the flag out to resume"
            )
    kept = given | {"checkpoint", "config"}
    if given & {"num_epochs", "total_iter_num"}:
        kept |= {"num_epochs", "total_iter_num"}
    for name, value in flags.items():
        if name not in kept:
            setattr(args, name, value)
            if value is not None and name in checkpoint["meta"]["loss_options"]:
                given.add(name)
    return checkpoint


def check_schedule(args: Namespace, given: set[str]) -> None:
    """Settle the length of the run and the flags of its learning rate."""
    if {"num_epochs", "total_iter_num"} <= given:
        raise ValueError("expected --num_epochs or --total_iter_num, found both")
    if args.num_epochs is not None and "num_epochs" in given:
        args.total_iter_num = None
    if args.lr_strategy != "piecewise_decay" and "lr_steps" in given:
        raise ValueError(f"--lr_steps is not used by --lr_strategy={args.lr_strategy}")


def set_class_dim(args: Namespace, train_index: Index) -> None:
    """Count the training classes; a --class_dim that differs is an error."""
    if args.class_dim not in (None, train_index.num_classes):
        raise ValueError(
            f"--class_dim={args.class_dim}, but {args.dataset} has {train_index.num_classes} "
            "training classes here: leave the flag out, it is counted"
        )
    args.class_dim = train_index.num_classes


def check_batch_flags(args: Namespace, world: World) -> None:
    """Check the flags that say how a batch is computed.

    Raises:
        ValueError: parts or chunks would be too small, or the flags contradict each other.
    """
    least = 2 * world.size * args.accumulation_steps
    if args.train_batch_size < least:
        raise ValueError(
            f"--train_batch_size={args.train_batch_size}: batch norm needs at least 2 images per "
            f"device and part, {least} in all"
        )
    if args.chunk_size == 1 and not args.freeze_bn:
        raise ValueError("--chunk_size=1: batch norm needs 2 images; or give --freeze_bn=True")
