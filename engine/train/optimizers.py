"""Optimizers: the reference's SGD by default, and what recipes of other papers ask for."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable
from copy import deepcopy
from typing import Any

import torch
from torch import nn

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}


def build_optimizer(
    model: nn.Module, head: nn.Module, criterion: nn.Module, args: Namespace
) -> torch.optim.Optimizer:
    """Build the optimizer of the flags over all weights of the network and of the loss.

    By default SGD with momentum 0.9 (not Nesterov) and L2 1e-4 on all parameters, as the
    reference.

    Args:
        model: the network, embedding layer included.
        head: the parts of the model that are new beside the backbone, such as the embedding
            layer; their rate is multiplied by `args.lr_head_mult`.
        criterion: the loss; the rate of its weights (class weights, proxies), if any, is multiplied
            by `args.lr_loss_mult`, which is `args.lr_head_mult` where it is None.
        args: flags `optimizer`, `lr`, `lr_head_mult`, `lr_loss_mult`, `momentum`, `nesterov`,
            `weight_decay`, `decay_norm_and_bias`.

    Returns:
        An optimizer whose groups have an `lr_mult` and a weight decay.

    Raises:
        ValueError: a multiplier was changed but there is nothing to multiply.
    """
    head_mult = args.lr_head_mult
    loss_mult = head_mult if args.lr_loss_mult is None else args.lr_loss_mult
    has_head, has_weights = _has_parameters(head), _has_parameters(criterion)
    if head_mult != 1.0 and not (has_head or (has_weights and args.lr_loss_mult is None)):
        raise ValueError(
            "--lr_head_mult is not used: neither a head (--embedding_size, --pooling=gem, "
            "--feature_norm=bnneck) nor a loss with class weights is trained"
        )
    if args.lr_loss_mult is not None and not has_weights:
        raise ValueError(f"--lr_loss_mult is not used: --loss_name={args.loss_name} has no weights")
    in_head = {id(parameter) for parameter in head.parameters()}
    trunk = [parameter for parameter in model.parameters() if id(parameter) not in in_head]
    groups = [
        group
        for parameters, multiplier in (
            (trunk, 1.0),
            (head.parameters(), head_mult),
            (criterion.parameters(), loss_mult),
        )
        for group in _groups(parameters, multiplier, args)
    ]
    options: dict[str, Any] = {"lr": args.lr, "fused": _can_fuse(groups)}
    if args.optimizer == "sgd":
        options |= {"momentum": args.momentum, "nesterov": args.nesterov}
    return OPTIMIZERS[args.optimizer](groups, **options)


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Give an optimizer a copy of a checkpoint's state; its rates, decays and so on are flags.

    Raises:
        ValueError: the state is of other weights.
    """
    settings = [
        {name: value for name, value in group.items() if name != "params"}
        for group in optimizer.param_groups
    ]
    try:
        optimizer.load_state_dict(deepcopy(state))
    except ValueError as error:
        raise ValueError(
            f"the optimizer of the checkpoint is of another kind or version ({error}): give the "
            "checkpoint as --pretrained_model, to start from its weights"
        ) from error
    for group, values in zip(optimizer.param_groups, settings, strict=True):
        group.update(values)


def check_optimizer_flags(args: Namespace, given: set[str]) -> None:
    """Refuse flags that the chosen optimizer does not use, and settle what they leave open.

    Raises:
        ValueError: --momentum or --nesterov without SGD, or --nesterov without momentum.
    """
    if args.optimizer != "sgd":
        for name in ("momentum", "nesterov"):
            if name in given:
                raise ValueError(f"--{name} is not used by --optimizer={args.optimizer}")
    if args.nesterov and args.momentum == 0:
        raise ValueError("--nesterov needs a --momentum above 0")


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _groups(
    parameters: Iterable[nn.Parameter], multiplier: float, args: Namespace
) -> list[dict[str, Any]]:
    """Group parameters by weight decay; vectors and scalars are biases or belong to norms."""
    matrices: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for parameter in parameters:
        is_decayed = args.decay_norm_and_bias or parameter.ndim > 1
        (matrices if is_decayed else vectors).append(parameter)
    return [
        {"params": members, "lr_mult": multiplier, "weight_decay": decay}
        for members, decay in ((matrices, args.weight_decay), (vectors, 0.0))
        if members
    ]


def _can_fuse(groups: list[dict[str, Any]]) -> bool:
    """Whether one kernel may update all parameters: on a GPU, where it saves launches."""
    return all(parameter.is_cuda for group in groups for parameter in group["params"])
