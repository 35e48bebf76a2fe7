"""Learning rates by step."""

from __future__ import annotations

import math
from argparse import Namespace

import torch

LR_STRATEGIES = ("piecewise_decay", "cosine_decay", "constant")


def learning_rate(args: Namespace, step: int) -> float:
    """Return the learning rate of the update that follows `step` completed ones.

    The first `args.warmup_iter_num` updates rise linearly to the rate of the schedule, which a
    cosine begins after them; the boundaries of piecewise decay are counted from step 0.
    """
    warmup = args.warmup_iter_num
    rate = float(args.lr * min(1.0, (step + 1) / (warmup + 1)))
    if args.lr_strategy == "piecewise_decay":
        return float(rate * 0.1 ** sum(step >= boundary for boundary in args.lr_steps))
    if args.lr_strategy == "cosine_decay" and step >= warmup:
        progress = (step - warmup) / max(1, args.total_iter_num - warmup)
        return float(rate * 0.5 * (1 + math.cos(math.pi * progress)))
    return rate


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of every parameter group to `rate` times its multiplier."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_mult"]
