"""Learning rates by step, and the optimizer of the reference."""

from __future__ import annotations

import math
from argparse import Namespace

import torch
from torch import nn

MOMENTUM = 0.9
WEIGHT_DECAY = 1e-4


def learning_rate(args: Namespace, step: int) -> float:
    """Return the learning rate of the update that follows `step` completed ones."""
    if args.lr_strategy == "piecewise_decay":
        return float(args.lr * 0.1 ** sum(step >= boundary for boundary in args.lr_steps))
    if args.lr_strategy == "cosine_decay":
        return float(args.lr * 0.5 * (1 + math.cos(math.pi * step / args.total_iter_num)))
    return float(args.lr)


def build_optimizer(
    model: nn.Module, head: nn.Module, criterion: nn.Module, args: Namespace
) -> torch.optim.SGD:
    """Build SGD with momentum 0.9 (not Nesterov) and L2 1e-4 on all parameters, as the reference.

    Args:
        model: the network, embedding layer included.
        head: the embedding layer of the model; its rate is multiplied by `args.lr_head_mult`.
        criterion: the loss; its weights, if any, are trained at the head's rate too.
        args: flags `lr`, `lr_head_mult`.

    Returns:
        An optimizer with groups of `lr_mult` 1 and `args.lr_head_mult`.

    Raises:
        ValueError: `lr_head_mult` was changed but there is no head.
    """
    head_parameters = [*head.parameters(), *criterion.parameters()]
    if args.lr_head_mult != 1.0 and not head_parameters:
        raise ValueError(
            "--lr_head_mult is not used: neither an embedding layer (--embedding_size) nor a loss "
            "with class weights is trained"
        )
    in_head = {id(parameter) for parameter in head_parameters}
    trunk = [parameter for parameter in model.parameters() if id(parameter) not in in_head]
    groups = [
        {"params": trunk, "lr_mult": 1.0},
        {"params": head_parameters, "lr_mult": args.lr_head_mult},
    ]
    return torch.optim.SGD(
        [group for group in groups if group["params"]],
        lr=args.lr,
        momentum=MOMENTUM,
        weight_decay=WEIGHT_DECAY,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of every parameter group to `rate` times its multiplier."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_mult"]
