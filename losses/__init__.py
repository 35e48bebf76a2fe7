"""Losses: tensors in, scalar out; no devices, no collectives, no files."""

from metric_learning.losses.table import (
    ELEM_LOSSES,
    LOSS_ALIASES,
    PAIR_LOSSES,
    SplittableLoss,
    build_loss,
    is_pml,
    layout_of,
    loss_options,
)

__all__ = [
    "ELEM_LOSSES",
    "LOSS_ALIASES",
    "PAIR_LOSSES",
    "SplittableLoss",
    "build_loss",
    "is_pml",
    "layout_of",
    "loss_options",
]
