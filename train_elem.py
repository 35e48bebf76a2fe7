"""Stage 1: train a backbone with a loss that looks at one image at a time.

python train_elem.py --loss_name=arcmargin --dataset=demo --model=ResNet18 --image_shape=3,64,64
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from metric_learning.common.cli import user_errors
from metric_learning.common.flags import Flag, boolean, parse_flags
from metric_learning.engine.options.training_flags import training_flags
from metric_learning.engine.parallel.distributed import World
from metric_learning.engine.parallel.sharded_head import ShardedHead
from metric_learning.engine.train.fit import train
from metric_learning.losses import ELEM_LOSSES
from metric_learning.losses.functional import accuracies, classes_ahead
from metric_learning.reader.batches.samplers import ShuffledSampler

SHARD_HEAD = Flag(
    "shard_head",
    boolean,
    False,
    "split the class weights over the processes of torchrun, for very many classes",
)
FLAGS = training_flags(
    ELEM_LOSSES,
    SHARD_HEAD,
    loss_name="softmax",
    train_batch_size=256,
    lr=0.01,
    lr_steps=(15000, 25000),
    total_iter_num=30000,
    test_iter_step=1000,
    save_iter_step=1000,
)


def make_sampler(labels: np.ndarray, args: Namespace, world: World) -> ShuffledSampler:
    """Draw every image once per epoch, in an order that changes every epoch."""
    return ShuffledSampler(
        labels, args.train_batch_size, args.seed, world.rank, world.size, args.accumulation_steps
    )


def compute_loss(
    criterion: nn.Module, embeddings: Tensor, labels: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the loss, and top-1 and top-5 accuracy from the logits it was computed from."""
    if isinstance(criterion, ShardedHead):
        loss, ahead = criterion(embeddings, labels)
    else:
        loss, logits = criterion(embeddings, labels)
        ahead = classes_ahead(logits.detach(), labels)  # B
    return loss, accuracies(ahead)


def main(argv: Sequence[str] | None = None) -> Path:
    """Train and return the run folder."""
    with user_errors():
        args, given = parse_flags(__doc__, FLAGS, argv)
        return train(args, given, make_sampler, compute_loss)


if __name__ == "__main__":
    main()
