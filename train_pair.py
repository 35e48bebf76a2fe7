"""Stage 2: fine-tune with a loss that compares the images of a batch.

python train_pair.py --loss_name=eml --samples_each_class=2 --pretrained_model=CHECKPOINT
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metric_learning.common.cli import user_errors
from metric_learning.common.flags import Flag, boolean, parse_flags
from metric_learning.engine.options.training_flags import training_flags
from metric_learning.engine.parallel.distributed import World
from metric_learning.engine.train.criterion import PAIR_FLAGS
from metric_learning.engine.train.fit import train
from metric_learning.losses import PAIR_LOSSES, layout_of
from metric_learning.losses.functional import accuracies, classes_ahead
from metric_learning.reader.batches.samplers import ClassBlockSampler, PairSampler, TripleSampler

DEFAULT_SAMPLES_EACH_CLASS = 2  # of a loss without such an option

GATHER = Flag(
    "gather",
    boolean,
    False,
    "compare the images of all processes of torchrun, as one process with the whole batch would",
)
FLAGS = training_flags(
    PAIR_LOSSES,
    GATHER,
    *PAIR_FLAGS,
    loss_name="triplet",
    train_batch_size=120,
    lr=0.0001,
    lr_steps=(100000,),
    total_iter_num=100000,
    test_iter_step=5000,
    save_iter_step=5000,
)


def make_sampler(
    labels: np.ndarray, args: Namespace, world: World
) -> TripleSampler | PairSampler | ClassBlockSampler:
    """Draw the batches that the loss takes: triples, pairs, or blocks of K images of P classes."""
    share = (args.seed, world.rank, world.size, args.accumulation_steps)
    layout = layout_of(args.loss_name)
    if layout == "triples":
        return TripleSampler(labels, args.train_batch_size, *share)
    if layout == "pairs":
        return PairSampler(labels, args.train_batch_size, *share)
    samples_each_class = args.samples_each_class or DEFAULT_SAMPLES_EACH_CLASS
    return ClassBlockSampler(labels, args.train_batch_size, samples_each_class, *share)


def compute_loss(
    criterion: nn.Module, embeddings: Tensor, labels: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the loss, and Recall@1 inside the batch by cosine; with --alpha v1's figures."""
    loss = criterion(embeddings, labels)
    if isinstance(loss, tuple):
        loss, (metric, cross_entropy, logits) = loss
        parts = {"loss_metric": metric.detach(), "loss_cls": cross_entropy.detach()}
        return loss, {**parts, **accuracies(classes_ahead(logits.detach(), labels))}
    unit = F.normalize(embeddings.detach())
    similarities = (unit @ unit.T).fill_diagonal_(-torch.inf)  # BxB
    recall = (labels[similarities.argmax(1)] == labels).float().mean()
    return loss, {"recall": recall}


def main(argv: Sequence[str] | None = None) -> Path:
    """Train and return the run folder."""
    with user_errors():
        args, given = parse_flags(__doc__, FLAGS, argv)
        return train(args, given, make_sampler, compute_loss)


if __name__ == "__main__":
    main()
