"""Evaluate a checkpoint: Recall@K and the other retrieval metrics of a data set.

python eval.py --pretrained_model=output/ResNet50_eml/best.pt

With --compare, test whether a second checkpoint beats the first on the same images:

python eval.py --compare output/ResNet50_eml/best.pt output/ResNet50_triplet/best.pt
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from metric_learning.common.cli import user_errors
from metric_learning.common.flags import (
    Flag,
    grouped,
    parse_flags,
    path,
    positive,
    run_file,
    with_defaults,
)
from metric_learning.engine.options.tables import (
    AVERAGE_FLAGS,
    CLASS_FLAGS,
    DATA_FLAGS,
    MACHINE_FLAGS,
    METRIC_FLAGS,
    MODEL_FLAGS,
    OTHERS_LACK,
    SPLITS,
    VERIFY,
)

FLAGS = (
    *DATA_FLAGS,
    *grouped(
        "data", Flag("split", str, "test", "images to evaluate; all: every image once", SPLITS)
    ),
    *MODEL_FLAGS,
    *CLASS_FLAGS,
    *AVERAGE_FLAGS,
    *METRIC_FLAGS,
    *grouped(
        "run",
        Flag(
            "compare",
            run_file,
            None,
            "two checkpoints, or folders of features: does the second beat the first?",
            num_values=2,
        ),
        Flag(
            "features",
            path,
            None,
            "FILE.npy to keep the features in, reused where it holds them; or a folder of them "
            "that infer.py wrote, which is read",
        ),
        VERIFY,
        Flag("json", path, None, "file to write the metrics to"),
        Flag("display_iter_step", positive, 10, "batches between log lines"),
    ),
    *with_defaults(MACHINE_FLAGS, amp="off"),
    *grouped(
        "machine", Flag("batch_size", positive, 10, "images per batch; not given, 64 on a GPU")
    ),
)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Evaluate and return the metrics with what was evaluated."""
    with user_errors():
        flags = parse_flags(__doc__, FLAGS, argv, elsewhere=OTHERS_LACK)

        from metric_learning.engine.evaluate.evaluate import evaluate  # torch and all, only now
        from metric_learning.engine.options.evaluation import settle_evaluation
        from metric_learning.engine.parallel.world import join_world

        return evaluate(settle_evaluation(flags, join_world()))


if __name__ == "__main__":
    main()
