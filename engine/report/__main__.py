"""Write a report on a run: numbers, curves, queries, classes and a map in one HTML file.

The map of the embeddings (t-SNE) is also written as a picture, map.png.

python -m retrieval.report output/ResNet50_eml
python -m retrieval.report --features=features
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metric_learning.common.atomic import write_text
from metric_learning.common.cli import user_errors
from metric_learning.common.flags import Flag, parse_flags, path, positive
from metric_learning.common.log import log, versions
from metric_learning.engine.embed.inference import (
    Job,
    embed_split,
    load_split,
    open_split,
    refuse_flags,
)
from metric_learning.engine.evaluate.scoring import with_float64
from metric_learning.engine.options.flags import (
    DATA_FLAGS,
    MACHINE_FLAGS,
    MODEL_FLAGS,
    with_defaults,
)
from metric_learning.engine.parallel.devices import choose_device
from metric_learning.engine.report.data import Subject
from metric_learning.engine.report.page import render
from metric_learning.engine.run.records import read_records
from metric_learning.reader import ImageSet

SOURCE = Flag(
    "run_or_checkpoint", path, None, "a run folder (its best.pt, else last.pt) or weights"
)
FLAGS = (
    Flag("features", path, None, "folder of features that infer.py wrote, instead of a model"),
    Flag("report_dir", path, None, "folder for index.html; default: report/ in the run folder"),
    Flag("split", str, "test", "images to evaluate", ("test", "train")),
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
        args, given = parse_flags(__doc__, FLAGS, argv, SOURCE)
        source = find_source(args, given)
        home = source if args.features else source.parent
        folder = Path(args.report_dir or home / "report")
        folder.mkdir(parents=True, exist_ok=True)
        device = choose_device(args, log)
        if args.features:
            subject = subject_of_features(source)
        else:
            subject = subject_of_checkpoint(source, args, given, device)
        log(f"{len(subject.labels)} embeddings; now the queries, the classes and the map")
        picture = folder / "map.png"
        picture.unlink(missing_ok=True)  # of an earlier report
        page = render(subject, with_float64(device), args.seed, picture)
        file = folder / "index.html"
        write_text(file, page)
        if picture.is_file():
            log(f"map of the embeddings: {picture}")
        log(f"report: {file}, {file.stat().st_size / 1e6:.1f} MB, opens in any browser")
        return file


def find_source(args: Namespace, given: set[str]) -> Path:
    """Return the checkpoint or the folder of features that the flags name.

    Raises:
        ValueError: both or neither are named, a flag is not used, or a run folder is none.
        FileNotFoundError: there is nothing at that path.
    """
    if (args.run_or_checkpoint is None) == (args.features is None):
        raise ValueError(
            "expected a run folder or a checkpoint, or --features=FOLDER that infer.py wrote"
        )
    source = Path(args.features or args.run_or_checkpoint)
    if not source.exists():
        raise FileNotFoundError(
            f"{source} does not exist: give a run folder, a checkpoint or features"
        )
    if args.features:
        unused = [flag.name for flag in FLAGS if flag.name not in FEATURES_USE]
        refuse_flags(given, unused, "--features holds what they would choose")
        return source
    other_split = "train" if args.split == "test" else "test"
    unused = [f"{other_split}_classes", f"{other_split}_list"]
    refuse_flags(given, unused, f"with --split={args.split}")
    if source.is_file():
        return source
    for name in ("best.pt", "last.pt"):
        if (source / name).is_file():
            return source / name
    raise ValueError(
        f"{source} holds no best.pt and no last.pt: give a run folder of a training script, or a "
        "checkpoint"
    )


def subject_of_checkpoint(
    checkpoint: Path, args: Namespace, given: set[str], device: torch.device
) -> Subject:
    """Embed the split with the model of a checkpoint; a run's records lie beside it."""
    args.pretrained_model = str(checkpoint)
    job = Job(args, given, device)
    embedder, index = open_split(job)
    embeddings = embed_split(job, embedder, index)
    stats = checkpoint.parent / "stats.jsonl"
    records = read_records(stats) if stats.is_file() else []
    return build_subject(index, embeddings, vars(args), embedder.meta, records)


def subject_of_features(folder: Path) -> Subject:
    """Read the features that infer.py wrote, and the index of the images that they are of.

    Raises:
        ValueError: the files do not belong together, or the classes of the images are unknown.
    """
    if not (folder / "labels.txt").is_file():
        raise ValueError(
            f"{folder} holds no labels.txt: expected a folder that infer.py wrote for a --dataset, "
            "since a report needs classes"
        )
    meta: dict[str, Any] = {}
    try:
        features = np.load(folder / "features.npy")
        labels = np.array((folder / "labels.txt").read_text("utf-8").split(), dtype=np.int64)
        paths = (folder / "paths.txt").read_text(encoding="utf-8").splitlines()
        if (folder / "meta.json").is_file():
            meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    except (ValueError, EOFError) as error:
        raise ValueError(f"{folder}: a file is damaged ({error}): run infer.py again") from error
    if features.ndim != 2 or not len(features) == len(labels) == len(paths):
        raise ValueError(
            f"{folder}: expected as many rows in features.npy as labels and paths, found features "
            f"of shape {features.shape}, {len(labels)} labels, {len(paths)} paths: run infer.py "
            "again"
        )
    flags = meta.get("flags", {})
    index = load_split(Namespace(**flags), flags["split"]) if flags else plain_index(paths, labels)
    if index.paths != paths or not np.array_equal(index.labels, labels):
        raise ValueError(
            f"{folder}: the images are no longer those of the data set {index.name}: run infer.py "
            "again"
        )
    return build_subject(index, features, flags, meta.get("checkpoint", {}), [])


def plain_index(paths: list[str], labels: np.ndarray) -> ImageSet:
    """List image files whose classes have no names, all of them query and gallery."""
    everywhere = np.ones(len(paths), dtype=bool)
    names = {label: str(label) for label in np.unique(labels).tolist()}
    return ImageSet("images", "test", paths, labels, names, everywhere, everywhere)


def build_subject(
    index: ImageSet,
    embeddings: np.ndarray,
    flags: dict[str, Any],
    meta: dict[str, Any],
    records: list[dict[str, Any]],
) -> Subject:
    """Put together what is reported on.

    Args:
        index: N images.
        embeddings: (N, D) float32 in the order of the index.
        flags: of the script that embedded the images; empty where unknown.
        meta: what the checkpoint says of itself; empty where unknown.
        records: stats.jsonl of the training run; empty without one.
    """
    model = flags.get("model", "unknown model")
    classes = flags.get(f"{index.split}_classes")
    chosen = f", classes {classes}" if classes else ""
    roles = "each is query and gallery"
    if not index.is_self_retrieval:
        roles = f"{index.is_query.sum():,} queries, {index.is_gallery.sum():,} in the gallery"
    facts = [
        ("Model", f"{model}, {embeddings.shape[1]}-d embeddings"),
        ("Data set", f"{index.name}, {index.split} split{chosen}"),
        ("Images", f"{len(index):,}; {roles}"),
        ("Classes", f"{index.num_classes:,}"),
    ]
    if flags:
        facts.append(("Weights", str(flags["pretrained_model"])))
        facts.append(("Network input", f"{flags['image_shape'][1]} × {flags['image_shape'][2]} px"))
    loss = meta.get("loss")  # converted weights have none
    if loss:
        options = ", ".join(f"{name} {value}" for name, value in meta["loss_options"].items())
        facts.append(("Loss", f"{loss} ({options})" if options else loss))
        facts.append(("Trained on", f"{meta['dataset']}, {meta['step']:,} steps"))
    facts.append(("Versions", ", ".join(f"{name} {text}" for name, text in versions().items())))
    return Subject(
        title=f"{model}{f' with {loss}' if loss else ''} on {index.name}",
        facts=facts,
        flags=meta.get("flags", {}),
        records=records,
        embeddings=embeddings,
        labels=index.labels,
        class_names=index.class_names,
        is_query=index.is_query,
        is_gallery=index.is_gallery,
        read_image=index.read_image,
        super_classes=index.super_classes or {},
    )


if __name__ == "__main__":
    main()
