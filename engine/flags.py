"""Command-line flags of all scripts: tables of names, types, defaults and help."""

from __future__ import annotations

import argparse
import inspect
from argparse import Namespace
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any, get_type_hints

from torch import nn

from engine.optimizers import OPTIMIZERS
from engine.parsing import (
    Flag,
    amp,
    boolean,
    fraction,
    image_shape,
    integers,
    natural,
    non_negative,
    path,
    positive,
    whitening,
)
from engine.schedules import LR_STRATEGIES
from losses import ELEM_LOSSES, PAIR_LOSSES, loss_options
from reader import DATASETS
from reader.transforms import TRANSFORMS
from retrieval.scores import TIES

# Options of a loss that the engine derives instead of taking them from flags of the loss.
DERIVED_OPTIONS = ("class_dim", "embedding_size")

MODEL_FLAGS = (
    Flag("model", str, "ResNet50", "ResNet18/34/50/101/152, SE_ResNeXt50_32x4d or a timm name"),
    Flag("embedding_size", natural, 0, "size of a linear layer on the feature; 0: the feature"),
    Flag("image_shape", image_shape, (3, 224, 224), "network input: channels, height, width"),
    Flag(
        "transform",
        str,
        None,
        "image pipeline: reference (Lanczos without antialiasing; default for reference models) or "
        "standard (torchvision, antialiased; default for timm models)",
        tuple(TRANSFORMS),
    ),
    Flag("pretrained_model", path, None, "weights to start from: a file or folder of any kind"),
)
DATA_FLAGS = (
    Flag("dataset", str, "sop", "data set", tuple(DATASETS)),
    Flag("data_dir", path, None, "its folder; default: its usual place under data/"),
    Flag("train_classes", str, None, "training classes by number, e.g. 1-25 or 1-10,15"),
    Flag("test_classes", str, None, "test classes by number, e.g. 26-50"),
    Flag("train_list", path, None, "file of `path label` lines (--dataset=list)"),
    Flag("test_list", path, None, "file of `path label` lines (--dataset=list)"),
    Flag("csv", path, None, "file of images, from python -m data.prepare (--dataset=csv)"),
    Flag("fold", natural, None, "fold of the file to test on, others train (--dataset=csv)"),
)
MACHINE_FLAGS = (
    Flag("use_gpu", boolean, True, "use a GPU if there is one"),
    Flag("device", str, "auto", "auto, cpu, cuda, cuda:1, ...; auto follows --use_gpu"),
    Flag(
        "amp",
        amp,
        "auto",
        "precision of the forward pass: off (float32), bfloat16, float16 (training scales the "
        "loss), or auto (bfloat16 on a GPU that has it)",
    ),
    Flag("num_workers", natural, 2, "processes that read images; 0: none beside the main one"),
    Flag(
        "seed", natural, 0, "seed of all that is random: weights, sampling, augmentation, bootstrap"
    ),
)
TRAIN_FLAGS = (
    Flag("train_batch_size", positive, None, "images per step over all devices"),
    Flag("test_batch_size", positive, 50, "images per test batch"),
    Flag("class_dim", positive, None, "number of training classes; default: counted (SOP: 11318)"),
    Flag("lr", non_negative, None, "initial learning rate"),
    Flag("lr_strategy", str, "piecewise_decay", "learning-rate schedule", LR_STRATEGIES),
    Flag("lr_steps", integers, None, "steps at which piecewise_decay divides the rate by 10"),
    Flag("warmup_iter_num", natural, 0, "first steps, in which the rate rises linearly"),
    Flag(
        "lr_head_mult",
        non_negative,
        1.0,
        "learning rate of class and embedding layers, as a factor",
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
    Flag("keep", natural, 3, "numbered checkpoints to keep; 0: all"),
    Flag("checkpoint", path, None, "training checkpoint to resume: restores everything"),
    Flag("model_save_dir", path, "output", "folder of run folders"),
    Flag("run_name", str, None, "run folder below it; default: MODEL_LOSS, numbered if taken"),
    Flag("freeze_bn", boolean, False, "batch norm keeps its statistics (small data sets)"),
    Flag(
        "min_crop_area",
        non_negative,
        0.08,
        "smallest area of a training crop, fraction of the image",
    ),
    Flag("horizontal_flip", boolean, True, "mirror every other training image"),
)

METRIC_FLAGS = (
    Flag("ks", integers, (), "K of Recall@K beside 1,10,100,1000, e.g. 2,4,8"),
    Flag("precision_ks", integers, (), "K of precision@K, e.g. 1,5,10"),
    Flag("ties", str, "pessimistic", "how negatives that tie with a positive count", TIES),
    Flag(
        "whiten",
        whitening,
        None,
        "PCA whitening learned on the training split: dimensions to keep, or all",
    ),
    Flag(
        "rerank",
        str,
        None,
        "re-ranking of the neighbours: qe, dba or kreciprocal, with parameters such as "
        "qe:k=10,alpha=3 or kreciprocal:k1=20,k2=6,lambda=0.3",
    ),
    Flag("verification", boolean, False, "also ROC AUC, TAR at FAR and EER over all pairs"),
    Flag("clustering", boolean, False, "also NMI, AMI, ARI and F1 of k-means clusters"),
    Flag("class_table", path, None, "CSV file to write the scores of each class to"),
)


def with_defaults(flags: Iterable[Flag], **defaults: Any) -> tuple[Flag, ...]:
    """Return the flags with some defaults replaced, by name."""
    return tuple(
        replace(flag, default=defaults[flag.name]) if flag.name in defaults else flag
        for flag in flags
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
                f"{loss_name}: annotate {name} as int, float, bool or str"
            )
            flags.setdefault(name, Flag(name, parsers[types[name]], None, text))
    return tuple(
        replace(flag, help=f"{flag.help} (default {', '.join(users[name])})")
        for name, flag in flags.items()
    )


def training_flags(
    losses: dict[str, type[nn.Module]], loss_name: str, **defaults: Any
) -> tuple[Flag, ...]:
    """Return all flags of a training script.

    Args:
        losses: the losses of its stage.
        loss_name: the default one.
        **defaults: of flags whose default depends on the stage.
    """
    return (
        Flag("loss_name", partial(_loss_of, losses), loss_name, f"one of {', '.join(losses)}"),
        *loss_flags(losses),
        *with_defaults(TRAIN_FLAGS, **defaults),
        *MODEL_FLAGS,
        *DATA_FLAGS,
        *MACHINE_FLAGS,
    )


def _loss_of(losses: dict[str, type[nn.Module]], text: str) -> str:
    """Parse the name of a loss of one stage."""
    if text in losses:
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
    own = loss_options(args.loss_name)
    stage = ELEM_LOSSES if args.loss_name in ELEM_LOSSES else PAIR_LOSSES
    for flag in loss_flags(stage):
        if flag.name in given and flag.name not in own:
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
