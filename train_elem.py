"""Stage 1: train a backbone with a loss that looks at one image at a time.

python train_elem.py --loss_name=arcmargin --dataset=demo --model=ResNet18 --image_shape=3,64,64
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from metric_learning.common.cli import user_errors
from metric_learning.engine.options.training_table import ELEM, parse_training, training_flags

FLAGS = training_flags(
    ELEM,
    loss_name="softmax",
    train_batch_size=256,
    lr=0.01,
    lr_steps=(15000, 25000),
    total_iter_num=30000,
    test_iter_step=1000,
    save_iter_step=1000,
)


def main(argv: Sequence[str] | None = None) -> Path:
    """Train and return the run folder."""
    with user_errors():
        flags = parse_training(__doc__, ELEM, FLAGS, argv)

        from metric_learning.engine.train import stages  # torch and all else, only now
        from metric_learning.engine.train.train import train

        return train(flags, stages.ELEM)


if __name__ == "__main__":
    main()
