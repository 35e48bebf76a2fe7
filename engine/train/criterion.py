"""The loss of a run: flags of stage 2, what stage 2 puts around a loss, and its class layer."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from torch import nn

from metric_learning.common.flags import Flag, natural, non_negative
from metric_learning.common.parameters import parse_options
from metric_learning.engine.options.training_flags import DERIVED_OPTIONS
from metric_learning.engine.parallel.distributed import World
from metric_learning.engine.parallel.sharded_head import build_sharded_loss
from metric_learning.engine.run.checkpoints import load_checkpoint
from metric_learning.losses import ELEM_LOSSES, PAIR_LOSSES, build_loss, is_pml, loss_options
from metric_learning.losses.jointloss import JointLoss
from metric_learning.losses.memory import CrossBatchMemory
from metric_learning.losses.pairs import LabelLoss
from metric_learning.losses.softmaxloss import SoftmaxLoss
from metric_learning.models import EmbeddingModel, load_classifier
from metric_learning.models.weights.fingerprint import RANDOM

PAIR_FLAGS = (
    Flag(
        "alpha",
        non_negative,
        0.0,
        "weight of the cross-entropy of a class layer that is added to the loss, as in v1; 0: none",
    ),
    Flag(
        "xbm_size",
        natural,
        0,
        "cross-batch memory: so many embeddings of past batches are compared with too; 0: none",
    ),
    Flag("xbm_start", natural, 0, "steps before the memory of --xbm_size is filled and used"),
    Flag(
        "loss_options",
        str,
        None,
        "options of a pml: loss, numbers (1 and 0 for yes and no): pos_eps=0.01,neg_eps=0.01",
    ),
)


def check_criterion_flags(args: Namespace, given: set[str], world: World) -> None:
    """Refuse flags of stage 2 that the chosen loss does not use.

    Raises:
        ValueError: one was given.
    """
    if args.loss_name in ELEM_LOSSES:
        return
    if "loss_options" in given and not is_pml(args.loss_name):
        raise ValueError(
            f"--loss_options is not used by --loss_name={args.loss_name}: it has flags of its own"
        )
    if "xbm_start" in given and not args.xbm_size:
        raise ValueError("--xbm_start is not used without --xbm_size")
    if args.xbm_size and world.size > 1 and not args.gather:
        raise ValueError(
            "--xbm_size with several processes needs --gather=True: otherwise each would have a "
            "memory of its own"
        )
    able = [name for name, loss in PAIR_LOSSES.items() if issubclass(loss, LabelLoss)]
    if args.xbm_size and args.loss_name not in able:
        raise ValueError(
            f"--xbm_size is not used by --loss_name={args.loss_name}: it is for losses that "
            f"compare with a memory by label, {', '.join(able)}"
        )


def build_criterion(
    args: Namespace, options: dict[str, Any], embedding_size: int, world: World
) -> nn.Module:
    """Build the loss of the flags; in stage 2 with its memory and class layer, if any.

    Args:
        args: a value per flag.
        options: those of the loss that are flags; completed in place by the derived ones, and by
            --loss_options.
        embedding_size: dimension D of the embeddings.
        world: this process's place among those that --shard_head splits the classes over.

    Raises:
        ValueError: the loss refuses its options, or cannot be split.
    """
    derived = dict(zip(DERIVED_OPTIONS, (args.class_dim, embedding_size), strict=True))
    known = loss_options(args.loss_name)
    needed = [
        name for name in derived if name in known and known[name].default is known[name].empty
    ]
    options |= {name: derived[name] for name in needed}
    if is_pml(args.loss_name):
        options |= parse_pml_options(args.loss_name, args.loss_options or "")
    if getattr(args, "shard_head", False):
        return build_sharded_loss(world, args.loss_name, **options)
    criterion = build_loss(args.loss_name, **options)
    if args.loss_name in ELEM_LOSSES:
        return criterion
    if args.xbm_size:
        assert isinstance(criterion, LabelLoss)
        start = args.xbm_start * args.accumulation_steps
        criterion = CrossBatchMemory(criterion, embedding_size, args.xbm_size, start)
    if args.alpha:
        criterion = JointLoss(criterion, args.class_dim, embedding_size, args.alpha)
    return criterion


def parse_pml_options(loss_name: str, text: str) -> dict[str, float]:
    """Parse `name=value,...` into the options of a loss of pytorch-metric-learning.

    Raises:
        ValueError: the loss has no such option, or it is no number.
    """
    types: dict[str, type[float]] = {
        name: float
        for name, parameter in loss_options(loss_name).items()
        if name not in DERIVED_OPTIONS
        and (parameter.default is parameter.empty or isinstance(parameter.default, int | float))
    }
    options = parse_options(text, types, loss_name)
    # A count such as centers_per_class has to be an integer, and 2 is as good as 2.0 elsewhere.
    return {name: int(value) if value == int(value) else value for name, value in options.items()}


def load_class_layer(
    path: str, meta: dict[str, Any], model: EmbeddingModel, class_dim: int | None
) -> nn.Module | None:
    """Load the class layer of a weights file: that of its training, or a classifier from elsewhere.

    Args:
        path: what --pretrained_model names.
        meta: what this project wrote beside the weights; empty for files of others.
        model: the network that the file was loaded into.
        class_dim: the number of its classes; without it, classifiers from elsewhere are left out.

    Returns:
        A stage-1 loss in evaluation mode; None where there is none.

    Raises:
        ValueError: there is none of `class_dim` classes.
    """
    if "loss" in meta:
        layer = _layer_of_training(path, meta, model.embedding_size)
    else:
        layer = _layer_from_elsewhere(path, model) if class_dim and path != RANDOM else None
    found = 0 if layer is None else len(layer.weight)
    if class_dim not in (None, found):
        has = f"a class layer of {found} classes" if found else "no class layer on its embedding"
        raise ValueError(f"--class_dim={class_dim}, but {path} has {has}: leave the flag out")
    return layer and layer.eval()  # one with a state, such as a running scale, does not change it


def _layer_of_training(path: str, meta: dict[str, Any], embedding_size: int) -> Any:
    """Load the stage-1 loss of a checkpoint, or the class layer of its joint loss, if any."""
    if Path(path).suffix == ".safetensors":  # weights of the network alone
        return None
    if meta["loss"] in ELEM_LOSSES:
        layer, prefix = build_loss(meta["loss"], **meta["loss_options"]), ""
    elif meta["flags"].get("alpha"):
        layer, prefix = SoftmaxLoss(meta["flags"]["class_dim"], embedding_size), "class_layer."
    else:
        return None
    state = load_checkpoint(path)["criterion"]
    layer.load_state_dict(
        {key.removeprefix(prefix): state[key] for key in state if key.startswith(prefix)}
    )
    return layer


def _layer_from_elsewhere(path: str, model: EmbeddingModel) -> SoftmaxLoss | None:
    """Load the classifier that weights from elsewhere have on the embedding, if any."""
    found = load_classifier(model, path)
    if found is None:
        return None
    layer = SoftmaxLoss(*found.weight.shape)
    layer.load_state_dict({"weight": found.weight, "bias": found.bias})
    return layer


def class_layer_of(criterion: nn.Module) -> Any:
    """Return the class layer of a loss in training: a stage-1 loss itself, that of a joint loss.

    Returns:
        None where there is none, or where each process has a part of it (--shard_head).
    """
    layer = getattr(criterion, "class_layer", criterion)
    return layer if hasattr(layer, "class_scores") else None
