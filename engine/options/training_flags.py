"""Command-line flags of the training scripts, those of the losses among them."""

from __future__ import annotations

import argparse
import inspect
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, get_type_hints

from torch import nn

from metric_learning.common.flags import (
    Flag,
    boolean,
    fraction,
    integers,
    natural,
    non_negative,
    path,
    positive,
)
from metric_learning.engine.options.flags import (
    DATA_FLAGS,
    MACHINE_FLAGS,
    MODEL_FLAGS,
    with_defaults,
)
from metric_learning.engine.train.optimizers import OPTIMIZERS
from metric_learning.engine.train.schedules import LR_STRATEGIES
from metric_learning.losses import (
    ELEM_LOSSES,
    LOSS_ALIASES,
    PAIR_LOSSES,
    is_pml,
    layout_of,
    loss_options,
)
from metric_learning.reader.batches.loader import BAD_IMAGE_POLICIES

PLACES = ("workers", "device")
# Options of a loss that the engine derives instead of taking them from flags of the loss.
DERIVED_OPTIONS = ("class_dim", "embedding_size")

TRAIN_FLAGS = (
    Flag(
        "train_batch_size", positive, None, "images per step over all devices", alias="batch_size"
    ),
    Flag("test_batch_size", positive, 50, "images per test batch"),
    Flag("class_dim", positive, None, "number of training classes; default: counted (SOP: 11318)"),
    Flag("total_images", positive, None, "number of training images; default: counted"),
    Flag("lr", non_negative, None, "initial learning rate"),
    Flag("lr_strategy", str, "piecewise_decay", "learning-rate schedule", LR_STRATEGIES),
    Flag("lr_steps", integers, None, "steps at which piecewise_decay divides the rate by 10"),
    Flag("warmup_iter_num", natural, 0, "first steps, in which the rate rises linearly"),
    Flag(
        "lr_head_mult",
        non_negative,
        1.0,
        "learning rate of class and embedding layers, bnneck and gem, as a factor",
    ),
    Flag(
        "lr_loss_mult",
        non_negative,
        None,
        "learning rate of the loss's own weights (class layer, proxies), as a factor; default: "
        "that of --lr_head_mult",
    ),
    Flag("optimizer", str, "sgd", "optimizer", tuple(OPTIMIZERS)),
    Flag("momentum", non_negative, 0.9, "momentum of sgd"),
    Flag("nesterov", boolean, False, "Nesterov's momentum in sgd"),
    Flag("weight_decay", non_negative, 1e-4, "L2 of sgd and adam, decoupled decay of adamw"),
    Flag(
        "decay_norm_and_bias",
        boolean,
        True,
        "weight decay on biases and normalisation layers too, as in the reference",
    ),
    Flag("clip_grad_norm", non_negative, 0.0, "largest norm of all gradients; 0: no clipping"),
    Flag(
        "ema_decay",
        fraction,
        0.0,
        "decay of a moving average of the weights, which is tested and saved; 0: none",
    ),
    Flag(
        "accumulation_steps",
        positive,
        1,
        "parts of a device's batch, each with a loss of its own; their gradients are averaged",
    ),
    Flag(
        "chunk_size",
        natural,
        0,
        "most images in the network at once; the loss sees the whole batch; 0: all",
    ),
    Flag("with_mem_opt", boolean, False, "compute activations again instead of keeping them"),
    Flag("compile", boolean, False, "compile the network (torch.compile)"),
    Flag("total_iter_num", natural, None, "number of steps"),
    Flag("num_epochs", positive, None, "instead of --total_iter_num: passes over the images"),
    Flag("display_iter_step", positive, 10, "steps between log lines"),
    Flag("test_iter_step", natural, None, "steps between tests; 0: never test"),
    Flag("save_iter_step", natural, None, "steps between checkpoints; 0: only at the end"),
    Flag(
        "log_epochs",
        boolean,
        False,
        "test and save at the end of every epoch too, and log the means over it: loss and accuracy "
        "of training and test",
    ),
    Flag("keep", natural, 3, "numbered checkpoints to keep; 0: all"),
    Flag(
        "checkpoint",
        path,
        None,
        "training checkpoint to resume: restores everything; auto: the newest good one of the "
        "run, from scratch where there is none",
    ),
    Flag("model_save_dir", path, "output", "folder of run folders"),
    Flag("run_name", str, None, "run folder below it; default: MODEL_LOSS, numbered if taken"),
    Flag(
        "freeze_bn",
        boolean,
        False,
        "batch norm of the backbone keeps its statistics (small data sets)",
    ),
    Flag(
        "sync_bn",
        boolean,
        False,
        "batch norm takes its statistics over the images of all processes (torchrun, GPUs only)",
    ),
    Flag(
        "min_crop_area",
        non_negative,
        0.08,
        "smallest area of a training crop, fraction of the image",
    ),
    Flag("horizontal_flip", boolean, True, "mirror every other training image"),
    Flag(
        "cache",
        path,
        None,
        "folder of decoded training images: built there once, about 15 GB for SOP, then trained "
        "from; test images are always read from their files",
    ),
    Flag(
        "cache_size",
        positive,
        256,
        "short side, in pixels, that larger images are reduced to in --cache",
    ),
    Flag(
        "augment_on",
        str,
        "workers",
        "where training images are cropped, resized and mirrored (device: --transform=standard)",
        PLACES,
    ),
    Flag(
        "decode_on",
        str,
        "workers",
        "where JPEG files of training images are decoded; device: on a CUDA GPU, which then "
        "augments them too",
        PLACES,
    ),
    Flag(
        "on_bad_image",
        str,
        "error",
        "unreadable training image: stop, or skip: draw another of its class, up to 5% of all "
        "images; an unreadable test image is always an error, else the scores would be of others",
        BAD_IMAGE_POLICIES,
    ),
    Flag("prefetch", positive, 2, "training batches that each worker prepares ahead"),
)


def loss_flags(losses: dict[str, type[nn.Module]]) -> tuple[Flag, ...]:
    """Return the flags of all options of these losses, from their signatures and docstrings.

    Their default is None: the chosen loss has the last word.
    """
    parsers: dict[Any, Callable[[str], Any]] = {
        int: positive,
        float: non_negative,
        bool: boolean,
        str: str,
        tuple[int, ...]: integers,
    }
    flags: dict[str, Flag] = {}
    users: dict[str, list[str]] = {}
    for loss_name, loss in losses.items():
        types = get_type_hints(loss.__init__)
        for name, parameter in loss_options(loss_name).items():
            if name in DERIVED_OPTIONS:
                continue
            users.setdefault(name, []).append(f"{loss_name}: {parameter.default}")
            text = _argument_help(loss, name)
            assert types[name] in parsers, (
                f"{loss_name}: annotate {name} as int, float, bool, str or tuple[int, ...]"
            )
            flags.setdefault(name, Flag(name, parsers[types[name]], None, text))
    return tuple(
        replace(flag, help=f"{flag.help} (default {', '.join(users[name])})")
        for name, flag in flags.items()
    )


def training_flags(
    losses: dict[str, type[nn.Module]], *own: Flag, loss_name: str, **defaults: Any
) -> tuple[Flag, ...]:
    """Return all flags of a training script.

    Args:
        losses: the losses of its stage.
        *own: flags of this script alone.
        loss_name: the default loss.
        **defaults: of flags whose default depends on the stage.
    """
    names = ", ".join(losses)
    if losses is PAIR_LOSSES:
        names += ", or pml:NAME, a loss of pytorch-metric-learning"
    return (
        Flag("loss_name", partial(_loss_of, losses), loss_name, f"one of {names}"),
        *loss_flags(losses),
        *with_defaults(TRAIN_FLAGS, **defaults),
        *own,
        *MODEL_FLAGS,
        *DATA_FLAGS,
        *MACHINE_FLAGS,
    )


def _loss_of(losses: dict[str, type[nn.Module]], text: str) -> str:
    """Parse the name of a loss of one stage; stage 2 also has names of v1 and `pml:` names."""
    if text in losses or (losses is PAIR_LOSSES and text in LOSS_ALIASES):
        return text
    if losses is PAIR_LOSSES and is_pml(text):
        try:
            loss_options(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return text
    message = f"unknown loss {text!r}: choose from {', '.join(losses)}"
    if text in ELEM_LOSSES | PAIR_LOSSES:
        message += f"; train_{'elem' if text in ELEM_LOSSES else 'pair'}.py has {text}"
    raise argparse.ArgumentTypeError(message)


def _argument_help(loss: type[nn.Module], name: str) -> str:
    """What the Args section of a class docstring says of an argument."""
    lines = (inspect.getdoc(loss) or "").partition("Args:\n")[2].split("\n\n")[0].splitlines()
    sentence: list[str] = []
    for line in lines:
        if line.startswith(f"    {name}: "):
            sentence.append(line.partition(": ")[2])
        elif sentence and line.startswith(" " * 8):
            sentence.append(line.strip())
        elif sentence:
            break
    return " ".join(sentence).rstrip(".")


def options_of_loss(args: Namespace, given: set[str]) -> dict[str, Any]:
    """Collect the options of the chosen loss, the given ones and its own defaults.

    Raises:
        ValueError: a given flag belongs to other losses only.
    """
    own = {} if is_pml(args.loss_name) else loss_options(args.loss_name)
    stage = ELEM_LOSSES if args.loss_name in ELEM_LOSSES else PAIR_LOSSES
    used = set(own)
    if stage is PAIR_LOSSES and layout_of(args.loss_name) == "labels":
        used.add("samples_each_class")  # of its batches; such a loss itself does not need it
    for flag in loss_flags(stage):
        if flag.name in given and flag.name not in used:
            used_by = [name for name in stage if flag.name in loss_options(name)]
            raise ValueError(
                f"--{flag.name} is not used by --loss_name={args.loss_name} "
                f"(but by {', '.join(used_by)}): leave it out"
            )
    return {
        name: getattr(args, name) if name in given else parameter.default
        for name, parameter in own.items()
        if name not in DERIVED_OPTIONS
    }
