"""Losses: tensors in, scalar out; no devices, no collectives, no files.

Begin at table: the losses by name, their options, and how one is built.

- NAMEloss: a loss each, or two that are variants of one another; v1losses: the three of the
  reference's first version. Apart from them, jointloss puts a class layer beside a loss of
  stage 2, scaledloss gives what such a loss reads one length,
  similaritydistillation compares with a teacher, pmlloss has the losses of
  pytorch-metric-learning, and ownloss finds those of the user's own modules.
- classes: base classes of the losses of stage 1 that are computed from cosines to class weights.
- pairs: pairs by label, for the losses of stage 2 that look at labels and not at positions. mining
  chooses triples among such pairs, memory compares a batch with the batches before it.
- functional: functions that several losses share: distances, accuracies, checks of a batch.
"""

from metric_learning.losses.table import (
    ELEM_LOSSES,
    FACE_LOSSES,
    PAIR_LOSSES,
    V1_LOSSES,
    SplittableLoss,
    build_loss,
    find_loss,
    is_pml,
    layout_of,
    loss_options,
    reads_raw,
    stage_of,
)

__all__ = [
    "ELEM_LOSSES",
    "FACE_LOSSES",
    "PAIR_LOSSES",
    "V1_LOSSES",
    "SplittableLoss",
    "build_loss",
    "find_loss",
    "is_pml",
    "layout_of",
    "loss_options",
    "reads_raw",
    "stage_of",
]
