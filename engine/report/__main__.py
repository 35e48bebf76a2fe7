"""Write a report on a run: numbers, curves, queries, classes and a map in one HTML file.

The map of the embeddings (t-SNE) is also written as a picture, map.png.

python -m retrieval.report output/ResNet50_eml
python -m retrieval.report --features=features
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from metric_learning.common.cli import refuse_torchrun, user_errors
from metric_learning.common.flags import Flag, parse_flags, path, positive, with_defaults
from metric_learning.common.outputs import prepare_folder
from metric_learning.engine.options.tables import (
    DATA_FLAGS,
    MACHINE_FLAGS,
    MODEL_FLAGS,
    OTHERS_LACK,
    SPLITS,
)
from metric_learning.engine.report.files import REPORT

SOURCE = Flag(
    "run_or_checkpoint", path, None, "a run folder (its best.pt, else last.pt) or weights"
)
FLAGS = (
    Flag("features", path, None, "folder of features that infer.py wrote, instead of a model"),
    Flag("report_dir", path, None, "folder for index.html; default: report/ in the run folder"),
    Flag("split", str, "test", "images to evaluate; all: every image once", SPLITS),
    Flag("batch_size", positive, 50, "images per batch"),
    Flag("display_iter_step", positive, 10, "batches between log lines"),
    *(flag for flag in MODEL_FLAGS if flag.name != "pretrained_model"),
    *DATA_FLAGS,
    *with_defaults(MACHINE_FLAGS, amp="off"),
)
FEATURES_USE = ("features", "report_dir", "use_gpu", "device", "seed", "config")


def main(argv: Sequence[str] | None = None) -> Path:
    """Write the report and return its file."""
    with user_errors():
        flags = parse_flags(__doc__, FLAGS, argv, SOURCE, elsewhere=OTHERS_LACK)
        refuse_torchrun()
        if flags.features:
            unused = [flag.name for flag in FLAGS if flag.name not in FEATURES_USE]
            flags.refuse(unused, "--features holds what they would choose")
        if flags.split == "all":
            flags.refuse(("train_classes", "test_classes"), "--split=all takes all classes")
        source = find_source(flags.run_or_checkpoint, flags.features)
        home = source if flags.features else source.parent
        folder = prepare_folder("report_dir", flags.report_dir or home / "report", REPORT)

        # torch and all else, only now
        from metric_learning.engine.options.evaluation import settle_embedding
        from metric_learning.engine.parallel.devices import choose_device
        from metric_learning.engine.parallel.world import World
        from metric_learning.engine.report.page import write_report
        from metric_learning.engine.report.subjects import of_checkpoint, of_features

        device = choose_device(flags.device, flags.use_gpu, World())
        if flags.features:
            subject = of_features(source)
        else:
            work = settle_embedding(flags.replaced(pretrained_model=str(source)), World())
            subject = of_checkpoint(work)
        return write_report(subject, folder, device, flags.seed)


def find_source(run_or_checkpoint: str | None, features: str | None) -> Path:
    """Return the checkpoint or folder of features that the flags name, or raise an error."""
    if (run_or_checkpoint is None) == (features is None):
        raise ValueError(
            "expected a run folder or a checkpoint, or --features=FOLDER that infer.py wrote"
        )
    source = Path(features or str(run_or_checkpoint))
    if not source.exists():
        raise FileNotFoundError(
            f"{source} does not exist: give a run folder, a checkpoint or features"
        )

    if features or source.is_file():
        return source
    for name in ("best.pt", "last.pt"):
        if (source / name).is_file():
            return source / name
    raise ValueError(
        f"{source} holds no best.pt and no last.pt: give a run folder of a training script, or a "
        "checkpoint"
    )


if __name__ == "__main__":
    main()
