"""From flags to everything that a training run consists of."""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from timm.layers import convert_sync_batchnorm
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from metric_learning.common.log import log
from metric_learning.engine.embed.inference import load_split, preprocessing_of
from metric_learning.engine.embed.network import model_of
from metric_learning.engine.options.training_flags import options_of_loss
from metric_learning.engine.parallel.devices import choose_device, keep_freed_memory, place
from metric_learning.engine.parallel.distributed import World, decide_on_main
from metric_learning.engine.run.resume import find_start, load_start
from metric_learning.engine.train.criterion import build_criterion, check_criterion_flags
from metric_learning.engine.train.optimizers import build_optimizer, check_optimizer_flags
from metric_learning.engine.train.reading import check_reading, open_training_images
from metric_learning.engine.train.training import Training
from metric_learning.engine.train.window import Window
from metric_learning.losses import ELEM_LOSSES, LOSS_ALIASES
from metric_learning.models import MODEL_OPTIONS, EmbeddingModel, load_weights
from metric_learning.reader import ImageSet
from metric_learning.reader.batches.loader import Sampler

# Maps (labels, args, world) to the sampler of the stage.
MakeSampler = Callable[[np.ndarray, Namespace, World], Sampler]

IMAGES_PER_TRIPLE = 3

# Flags that a resumed run must have as its checkpoint has them.
FIXED_FLAGS = (
    *("model", "embedding_size", *MODEL_OPTIONS, "loss_name", "class_dim"),
    *("optimizer", "decay_norm_and_bias"),
    *("alpha", "xbm_size", "loss_options"),
)


def load_pretrained(model: EmbeddingModel, path: str, world: World) -> None:
    """Load weights to start from, and log what was found."""
    report = load_weights(model, path)
    if world.is_main:
        log(f"weights: {report.source}, {len(report.loaded)} tensors loaded")
        if report.missing:
            log(f"weights: {', '.join(report.missing)} not there, starting as new")


def recompute_activations(model: EmbeddingModel) -> None:
    """Let the backward pass compute activations again instead of keeping them.

    Raises:
        ValueError: the backbone cannot.
    """
    try:
        model.backbone.set_grad_checkpointing(True)  # type: ignore[operator]
    except (AssertionError, AttributeError) as error:
        raise ValueError(f"--with_mem_opt: {model.name} cannot, leave the flag out") from error


def set_up(args: Namespace, given: set[str], make_sampler: MakeSampler, world: World) -> Training:
    """Build everything from the flags, and restore the checkpoint where one is named.

    Args:
        args: a value per flag; completed in place.
        given: names of the flags that the user gave.
        make_sampler: builds the sampler of the stage.
        world: this process's place among the ranks.

    Raises:
        ValueError: flags contradict each other, the data or the checkpoint.
        OSError: a file cannot be read.
    """
    say = log if world.is_main else lambda line: None
    adopt_v1(args, say)
    start = decide_on_main(world, lambda: find_start(args))
    args.checkpoint = start.checkpoint
    checkpoint = adopt_checkpoint(args, given) if args.checkpoint else None
    device = choose_device(args, say, world)
    if device.type == "cpu":
        keep_freed_memory()
    check_schedule(args, given)
    check_criterion_flags(args, given, world)
    check_optimizer_flags(args, given)
    torch.manual_seed(args.seed)
    train_index = load_split(args, "train")
    test_index = load_split(args, "test") if args.test_iter_step or args.log_epochs else None
    set_sizes(args, train_index)
    check_batch_flags(args, world)
    set_num_steps(args, train_index)
    loss_options = options_of_loss(args, given)
    vars(args).update(loss_options)
    sampler = make_sampler(train_index.labels, args, world)
    model = build_network(args, world, device, is_new=checkpoint is None)
    preprocessing = preprocessing_of(args, model)
    args.transform = preprocessing.transform
    check_reading(args, given, device, train_index)
    criterion = build_criterion(args, loss_options, model.embedding_size, world).to(device)
    training = Training(
        args=args,
        world=world,
        start=start,
        device=device,
        train_index=open_training_images(args, train_index),
        test_index=test_index,
        model=model,
        criterion=criterion,
        loss_options=loss_options,
        sampler=sampler,
        preprocessing=preprocessing,
        optimizer=build_optimizer(model, model.head, criterion, args),
        scaler=torch.amp.GradScaler(device.type, enabled=args.amp == "float16"),
        ema=ModelEmaV3(model, args.ema_decay, use_warmup=True) if args.ema_decay else None,
        epoch=Window(world),
    )
    if checkpoint is not None:
        training.restore(checkpoint)
    return training


def build_network(
    args: Namespace, world: World, device: torch.device, is_new: bool
) -> EmbeddingModel:
    """Build the network of the flags on its device, with --pretrained_model if the run `is_new`.

    Raises:
        ValueError: there is no such model, a flag does not fit it, or the weights do not.
        OSError: the weights cannot be read.
    """
    model = model_of(args)
    if args.pretrained_model and is_new:
        load_pretrained(model, args.pretrained_model, world)
    if args.with_mem_opt:
        recompute_activations(model)
    check_batch_norm(args, model)
    if args.sync_bn:
        synchronise_batch_norm(model, world, device)
    place(model, device)
    return model


def check_batch_norm(args: Namespace, model: EmbeddingModel) -> None:
    """Raise ValueError where a flag is about batch norm and its part of the model has none."""
    for name, part in (("freeze_bn", model.backbone), ("sync_bn", model)):
        if getattr(args, name) and not any(isinstance(m, _BatchNorm) for m in part.modules()):
            raise ValueError(f"--{name} is not used: {args.model} has no batch norm")


def synchronise_batch_norm(module: nn.Module, world: World, device: torch.device) -> None:
    """Let a module's batch norms take their statistics over the images of all ranks.

    Raises:
        ValueError: there is one process, or the device is not a GPU.
    """
    if world.size == 1 or device.type != "cuda":
        raise ValueError(
            "--sync_bn=True needs several processes with a GPU each (PyTorch has it on GPUs only), "
            f"found {world.size} on {device.type}: leave it out or set --sync_bn=False"
        )
    convert_sync_batchnorm(module)


def adopt_v1(args: Namespace, say: Callable[[str], object]) -> None:
    """Give a loss with a name of v1 that of today, and make the batch of v1's README whole triples.

    Args:
        args: a value per flag; changed in place.
        say: logs a line.
    """
    is_whole = args.train_batch_size % IMAGES_PER_TRIPLE == 0
    if args.loss_name == "tripletloss" and not is_whole:
        number = math.ceil(args.train_batch_size / IMAGES_PER_TRIPLE)
        args.train_batch_size = IMAGES_PER_TRIPLE * number
        say(f"--train_batch_size={args.train_batch_size}, for {number} whole triples")
    args.loss_name = LOSS_ALIASES.get(args.loss_name, args.loss_name)


def adopt_checkpoint(args: Namespace, given: set[str]) -> dict[str, Any]:
    """Read --checkpoint and take the flags that were not given from it.

    Raises:
        ValueError: a given flag contradicts the checkpoint, or it belongs to the other stage.
    """
    checkpoint = load_start(args.checkpoint)
    flags = checkpoint["meta"]["flags"]
    is_elem = args.loss_name in ELEM_LOSSES
    if (flags["loss_name"] in ELEM_LOSSES) != is_elem:
        script = "train_pair.py" if is_elem else "train_elem.py"
        raise ValueError(
            f"{args.checkpoint} was written by {script} (--loss_name={flags['loss_name']}): "
            "resume it there, or give it as --pretrained_model to start from its weights"
        )
    fixed = MODEL_OPTIONS | flags  # checkpoints of earlier versions lack some
    for name in FIXED_FLAGS:
        if name in given and getattr(args, name) != fixed.get(name):
            raise ValueError(
                f"{args.checkpoint} was trained with --{name}={fixed.get(name)}, found "
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
    """Settle the length of the run, and refuse flags that contradict each other."""
    if {"num_epochs", "total_iter_num"} <= given:
        raise ValueError("expected --num_epochs or --total_iter_num, found both")
    if args.num_epochs is not None and "num_epochs" in given:
        args.total_iter_num = None
    if args.lr_strategy != "piecewise_decay" and "lr_steps" in given:
        raise ValueError(f"--lr_steps is not used by --lr_strategy={args.lr_strategy}")
    if args.sync_bn and args.freeze_bn:
        raise ValueError("--sync_bn=True is not used with --freeze_bn=True: leave one of them out")


def set_sizes(args: Namespace, train_index: ImageSet) -> None:
    """Count the training classes and images; a --class_dim or --total_images that differs fails."""
    for name, what, count in (
        ("class_dim", "classes", train_index.num_classes),
        ("total_images", "images", len(train_index)),
    ):
        if getattr(args, name) not in (None, count):
            raise ValueError(
                f"--{name}={getattr(args, name)}, but {args.dataset} has {count} training {what} "
                "here: leave the flag out, it is counted"
            )
    args.class_dim = train_index.num_classes


def set_num_steps(args: Namespace, train_index: ImageSet) -> None:
    """Turn --num_epochs, where it is what was given, into a number of steps."""
    if args.total_iter_num is None:
        args.total_iter_num = math.ceil(args.num_epochs * len(train_index) / args.train_batch_size)


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
    if getattr(args, "gather", False) and args.accumulation_steps > 1:
        raise ValueError(
            "--gather=True compares the whole batch, --accumulation_steps its parts alone: leave "
            "one of them out, or give --chunk_size to save memory"
        )
    part = args.train_batch_size // (world.size * args.accumulation_steps)
    learns_statistics = not args.freeze_bn or args.feature_norm == "bnneck"
    if args.chunk_size and learns_statistics and part // math.ceil(part / args.chunk_size) < 2:
        raise ValueError(
            f"--chunk_size={args.chunk_size} cuts {part} images so that a chunk has one, and batch "
            "norm needs 2: give another, or --freeze_bn=True without --feature_norm=bnneck"
        )
