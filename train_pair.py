"""Stage 2: fine-tune with a loss that compares the images of a batch.

python train_pair.py --loss_name=eml --samples_each_class=2 --pretrained_model=CHECKPOINT
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from metric_learning.common.cli import user_errors
from metric_learning.engine.options.training_table import PAIR, parse_training, training_flags

FLAGS = training_flags(
    PAIR,
    loss_name="triplet",
    train_batch_size=120,
    lr=0.0001,
    lr_steps=(100000,),
    total_iter_num=100000,
    test_iter_step=5000,
    save_iter_step=5000,
)


def main(argv: Sequence[str] | None = None) -> Path:
    """Train and return the run folder."""
    with user_errors():
        flags = parse_training(__doc__, PAIR, FLAGS, argv)

        from metric_learning.engine.train import stages  # torch and all else, only now
        from metric_learning.engine.train.train import train

        return train(flags, stages.PAIR)


if __name__ == "__main__":
    main()
