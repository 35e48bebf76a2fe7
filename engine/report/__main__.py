"""Write a report on a run: numbers, curves, queries, classes and a map in one HTML file.

The map of the embeddings (t-SNE) is also written as a picture, map.png. Of several runs the page
has their figures side by side, and the queries that one finds and the other does not.

python -m retrieval.report output/ResNet50_eml
python -m retrieval.report output/ResNet50_eml output/ResNet50_triplet
python -m retrieval.report --features=features
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from metric_learning.common.cli import refuse_torchrun, user_errors
from metric_learning.common.flags import Flag, cosine, parse_flags, path, positive, with_defaults
from metric_learning.common.outputs import prepare_folder
from metric_learning.engine.options.tables import (
    DATA_FLAGS,
    MACHINE_FLAGS,
    METRIC_FLAGS,
    MODEL_FLAGS,
    OTHERS_LACK,
    SPLITS,
)
from metric_learning.engine.report.files import REPORT

OPEN_SET_SHARE = 0.2  # of the classes, where only a threshold is given
SOURCE = Flag(
    "run_or_checkpoint",
    path,
    (),
    "a run folder (its best.pt, else last.pt) or weights; of several, a page that compares them",
    repeats=True,
)
FLAGS = (
    Flag("features", path, None, "folder of features that infer.py wrote, instead of a model"),
    Flag(
        "report_dir",
        path,
        None,
        "folder for index.html; default: report/ in the run folder, of several runs comparison/ "
        "beside the first",
    ),
    Flag(
        "baseline",
        path,
        "start",
        "what stands beside several runs. start: the weights that the first began with, before any "
        "training; random: untrained ones; a file of weights; or none",
    ),
    Flag(
        "show",
        str,
        (),
        "also show queries with this in their path or class name; may be repeated",
        repeats=True,
    ),
    Flag("num_queries", positive, 8, "queries that are shown of each kind"),
    next(flag for flag in METRIC_FLAGS if flag.name == "open_set"),
    Flag(
        "unknown_threshold",
        cosine,
        None,
        "a cosine whose rates stand beside those of --open_set, which then is "
        f"{OPEN_SET_SHARE:g} where it is not given",
    ),
    Flag("split", str, "test", "images to evaluate; all: every image once", SPLITS),
    Flag("batch_size", positive, 50, "images per batch"),
    Flag("display_iter_step", positive, 10, "batches between log lines"),
    *(flag for flag in MODEL_FLAGS if flag.name != "pretrained_model"),
    *DATA_FLAGS,
    *with_defaults(MACHINE_FLAGS, amp="off"),
)
OPEN_SET_NAMES = ("open_set", "unknown_threshold")
FEATURES_USE = (
    *("features", "report_dir", "show", "num_queries", *OPEN_SET_NAMES),
    *("use_gpu", "device", "seed"),
)
MOST_RUNS = 8


def main(argv: Sequence[str] | None = None) -> Path:
    """Write the report and return its file."""
    with user_errors():
        flags = parse_flags(__doc__, FLAGS, argv, SOURCE, elsewhere=OTHERS_LACK)
        refuse_torchrun()
        if flags.features:
            unused = [flag.name for flag in FLAGS if flag.name not in (*FEATURES_USE, "config")]
            flags.refuse(unused, "--features holds what they would choose")
        if flags.split == "all":
            flags.refuse(("train_classes", "test_classes"), "--split=all takes all classes")
        sources = find_sources(flags.run_or_checkpoint, flags.features)
        is_comparison = len(sources) > 1 or "baseline" in flags.given
        if is_comparison:
            flags.refuse(OPEN_SET_NAMES, "a page of several runs does not tell it")
        home = sources[0] if flags.features else sources[0].parent
        usual = home.parent / "comparison" if is_comparison else home / "report"
        folder = prepare_folder("report_dir", flags.report_dir or usual, REPORT)

        # torch and all else, only now
        from metric_learning.engine.options.evaluation import settle_embedding
        from metric_learning.engine.parallel.devices import choose_device
        from metric_learning.engine.parallel.world import World
        from metric_learning.engine.report.comparison.page import write_comparison
        from metric_learning.engine.report.data import QueryChoice, UnknownQueries
        from metric_learning.engine.report.page import write_report
        from metric_learning.engine.report.subjects import of_checkpoint, of_features

        device = choose_device(flags.device, flags.use_gpu, World())
        choice = QueryChoice(tuple(flags.show), flags.num_queries)
        threshold = flags.unknown_threshold
        share = flags.open_set or (0.0 if threshold is None else OPEN_SET_SHARE)
        unknown = UnknownQueries(share, threshold) if share else None
        told = folder, device, flags.seed, choice, unknown
        if flags.features:
            return write_report(of_features(home, choice), *told)
        works = [
            settle_embedding(flags.replaced(pretrained_model=str(source)), World())
            for source in sources
        ]
        if is_comparison:
            baseline = flags.baseline if "baseline" in flags.given else None
            return write_comparison(works, baseline, folder, choice)
        return write_report(of_checkpoint(works[0], choice, unknown), *told)


def find_sources(runs: Sequence[str], features: str | None) -> list[Path]:
    """Return the checkpoints, or the folder of features, that flags name, or raise an error."""
    if bool(runs) == bool(features):
        raise ValueError(
            "expected a run folder or a checkpoint, or --features=FOLDER that infer.py wrote"
        )
    if len(runs) > MOST_RUNS:
        raise ValueError(f"expected at most {MOST_RUNS} runs side by side, found {len(runs)}")
    if features:
        return [_existing(features)]

    sources = [find_checkpoint(_existing(run)) for run in runs]
    repeated = [source for number, source in enumerate(sources) if source in sources[:number]]
    if repeated:
        raise ValueError(f"{repeated[0]} is named twice: expected different runs")
    return sources


def _existing(name: str) -> Path:
    if not Path(name).exists():
        raise FileNotFoundError(
            f"{name} does not exist: give a run folder, a checkpoint or features"
        )
    return Path(name)


def find_checkpoint(source: Path) -> Path:
    """Return a file of weights as it is, and of a run folder its best.pt, else last.pt."""
    if source.is_file():
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
