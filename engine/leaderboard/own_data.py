"""One's own images, without a board: try what fits into some minutes, keep the best, use it all.

A fifth of the classes is held out for one measurement at the end; networks, sizes and losses are
chosen on folds of the others. Then the winner is trained on all images, and what it takes to use it
lies in `best/`.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import time
from argparse import ArgumentTypeError
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metric_learning import infer
from metric_learning.common.atomic import write_atomically, write_csv, write_json
from metric_learning.common.fingerprint import relative_paths
from metric_learning.common.flags import image_shape
from metric_learning.common.log import log
from metric_learning.common.names import to_cell
from metric_learning.common.schema import Field, check_fields, is_count, is_object, read_json
from metric_learning.common.sizes import Size, sides, size_text
from metric_learning.engine.leaderboard.boards.board import Board, Protocol, Row
from metric_learning.engine.leaderboard.boards.space import parse_parameter
from metric_learning.engine.leaderboard.estimate import image_cost, minutes_text
from metric_learning.engine.leaderboard.tables.formats import percent
from metric_learning.engine.leaderboard.trainings.outcomes import read_outcome
from metric_learning.engine.leaderboard.trainings.tasks import OUTPUT, Task, common_flags
from metric_learning.engine.leaderboard.trainings.work import Place, run_task
from metric_learning.engine.parallel.devices import usable_cores
from metric_learning.engine.report import __main__ as report
from metric_learning.models import MODEL_OPTIONS
from metric_learning.reader import ImageSet
from metric_learning.reader.sets.folds import class_folds

HELD_OUT = 5  # one of so many parts of the classes
FEWEST = 8  # classes, of which some can be held out and others divided into folds
FEW_HELD_OUT = 10  # classes, with fewer of which a measurement says little
PROTOCOL = Protocol(folds=3, trials=3, reserve=1, seeds=1, validates_all=True)
SAMPLED = 32  # images that are read, to learn how long that takes, and their shape
FAR_FROM_SQUARE = 1.5  # longer by shorter side, from which on rectangles are tried too
STRIDE = 32  # pixels by which networks divide an image, so that sides are multiples of it
HEAD_VIEWS = 4
SPLIT_COLUMNS = ("path", "label", "split")
LAST = "on_all_images"  # run folder of the last training
SCRATCH = "resnet10t"  # without weights of another one

EFFORT = "effort.json"
EFFORT_FIELDS = (
    Field("question", "an object", is_object),
    Field("number", "a number", is_count),
)
# Flags of fine-tuning, in which a pretrained network moves little; of training from random weights;
# and of a head on frozen features.
FINE_TUNED = {"optimizer": "adam", "lr": "0.00005", "freeze_bn": "True", "train_batch_size": "32"}
FROM_SCRATCH = {"optimizer": "adamw", "lr": "0.002", "train_batch_size": "32"}
HEAD = {
    **{"optimizer": "adamw", "lr": "0.001", "embedding_size": "512", "train_batch_size": "128"},
    **{"trainable": "head", "views": str(HEAD_VIEWS), "num_epochs": "20"},
    "loss_name": "normsoftmax",
}


class Effort(NamedTuple):
    """What is tried: sizes of images in pixels, losses of fine-tuning, and their epochs."""

    sizes: tuple[int, ...]
    losses: tuple[str, ...]
    epochs: int


EFFORTS = (  # the largest first
    Effort((128, 224), ("normsoftmax", "multi_similarity", "supcon"), 10),
    Effort((128, 224), ("normsoftmax", "multi_similarity"), 6),
    Effort((128, 224), ("normsoftmax",), 4),
    Effort((128,), ("normsoftmax", "multi_similarity"), 4),
    Effort((128,), ("normsoftmax",), 3),
    Effort((96,), ("normsoftmax",), 2),
    Effort((96,), (), 0),
)


@dataclass(frozen=True)
class OwnImages:
    """All images, divided.

    Attributes:
        folder: that the paths in the CSV files are relative to.
        lists: CSV file -> its rows: `divided` has the training images and those of the classes
            that are held out, `whole` all of them for training.
        num_train: images to choose with.
        num_all: images.
        read_seconds: that reading one of them takes.
        aspect: median of width by height.
    """

    folder: Path
    divided: Path
    whole: Path
    lists: Mapping[Path, list[dict[str, str]]]
    num_train: int
    num_all: int
    read_seconds: float
    aspect: float

    def write(self) -> None:
        """Write both lists."""
        for file, rows in self.lists.items():
            write_csv(file, SPLIT_COLUMNS, rows)


def divide(images: ImageSet, output: Path) -> OwnImages:
    """Hold out a fifth of the classes; both lists of images belong in folder `output`.

    Raises ValueError where images are not files, or there are too few classes.
    """
    if images.images is not None:
        raise ValueError(f"{images.name} holds its images in arrays: give a board of your own")
    labels = [images.class_names[label] for label in images.labels.tolist()]
    classes = sorted(set(labels))
    if len(classes) < FEWEST:
        raise ValueError(
            f"expected images of at least {FEWEST} classes, of which some are held out, found "
            f"{len(classes)}"
        )
    is_held_out = class_folds(images.labels, HELD_OUT) == 0
    splits = np.where(is_held_out, "test", "train").tolist()
    held_out = {label for label, split in zip(labels, splits, strict=True) if split == "test"}
    log(f"{len(held_out)} of {len(classes)} classes are held out to measure the winner once")
    if len(held_out) < FEW_HELD_OUT:
        log(f"warning: {len(held_out)} classes say little of others: see the interval at the end")

    names = relative_paths(images.paths)
    folder = Path(os.path.abspath(images.paths[0])[: -len(names[0])])
    divided, whole = output / "images.csv", output / "all_images.csv"
    lists = {
        file: [
            {"path": to_cell(name), "label": to_cell(label), "split": part}
            for name, label, part in zip(names, labels, parts, strict=True)
        ]
        for file, parts in ((divided, splits), (whole, ["train"] * len(splits)))
    }

    counts = splits.count("train"), len(splits)
    return OwnImages(folder, divided, whole, lists, *counts, *_look_at(images))


def _look_at(images: ImageSet) -> tuple[float, float]:
    """Read some images: the seconds that one takes, and the median of their widths by heights."""
    rows = range(0, len(images), max(1, len(images) // SAMPLED))
    started = time.perf_counter()
    shapes = np.array([images.read_image(row).shape[:2] for row in rows])  # heights and widths
    seconds = (time.perf_counter() - started) / len(rows)
    return seconds, float(np.median(shapes[:, 1] / shapes[:, 0]))


def find_weights(texts: Mapping[str, str], folder: Path = Path("pretrained")) -> dict[str, str]:
    """Return the flags of the network: those given, or of the weights that lie in pretrained/."""
    if "model" in texts or "pretrained_model" in texts:
        return dict(texts)
    for file in sorted(folder.glob("*_imagenet.safetensors")):
        found = {"model": file.name.removesuffix("_imagenet.safetensors")}
        return {**texts, **found, "pretrained_model": str(file)}
    log(
        f"no weights in {folder}: {SCRATCH} is trained from random ones, which reaches far less "
        "(python pretrained/fetch_weights.py --model=ResNet50)"
    )
    return {**texts, "model": SCRATCH}


def choose_effort(
    images: OwnImages, texts: Mapping[str, str], seconds: float, output: Path
) -> Effort:
    """Choose the largest effort that fits into some seconds of all processes together.

    The same question has the same answer when it is asked again in the folder: speeds vary.
    """
    path, question = output / EFFORT, {"seconds": seconds, "flags": dict(texts)}
    if path.exists():
        kept = check_fields(read_json(path, str(path)), EFFORT_FIELDS, str(path))
        if kept["question"] == question and kept["number"] < len(EFFORTS):
            return EFFORTS[kept["number"]]

    needs = [
        sum(_seconds(images, texts, size, effort) for size in sizes_of(images, texts, effort))
        + last_seconds(images, texts, effort)
        for effort in EFFORTS
    ]
    fitting = [number for number, needed in enumerate(needs) if needed <= seconds]
    number = fitting[0] if fitting else len(EFFORTS) - 1
    effort = EFFORTS[number]
    losses = "".join(f", {loss}" for loss in effort.losses)
    epochs = f" for {effort.epochs} epochs" if effort.epochs else ""
    sizes = sizes_of(images, texts, effort)
    if len(sizes) > len(effort.sizes):
        log(f"images are mostly not square (width by height {images.aspect:.2f}): rectangles too")
    log(
        f"{', '.join(map(size_text, sizes))}; frozen{losses}{epochs}: about "
        f"{minutes_text(needs[number])} of a core"
    )
    write_json(path, {"question": question, "number": number})
    return effort


def sizes_of(images: OwnImages, texts: Mapping[str, str], effort: Effort) -> tuple[Size, ...]:
    """Return the sizes of network inputs that are tried; ValueError for a wrong image_shape.

    That is a given image_shape alone. Otherwise the squares of the effort, and, where the images
    are far from square, beside each a rectangle of their shape with about as many pixels, if the
    network takes it.
    """
    if "image_shape" in texts:
        try:
            _, *given = image_shape(texts["image_shape"])
        except ArgumentTypeError as error:
            raise ValueError(f"--flag=image_shape={texts['image_shape']}: {error}") from None
        return ((given[0], given[1]),)
    if 1 / FAR_FROM_SQUARE < images.aspect < FAR_FROM_SQUARE:
        return effort.sizes

    sizes: list[Size] = []
    for side in effort.sizes:
        stretch = math.sqrt(images.aspect)
        height, width = (
            max(STRIDE, STRIDE * round(s / STRIDE)) for s in (side / stretch, side * stretch)
        )
        sizes.append(side)
        with contextlib.suppress(ValueError):  # some networks take squares alone
            _image_seconds(images, texts, (height, width))
            sizes.append((height, width))
    return tuple(sizes)


def own_board(images: OwnImages, texts: Mapping[str, str], effort: Effort) -> Board:
    """Return the board of an effort; `texts` are the flags of all trainings, and the network."""
    data = {"dataset": "csv", "csv": str(images.divided), "data_dir": str(images.folder)}
    common = {"lr_strategy": "cosine_decay", "min_crop_area": "0.2", "num_workers": "0", **texts}
    sizes = sizes_of(images, texts, effort)
    rows = [row for size in sizes for row in _rows_of_size(common, size, effort)]
    return Board("own_data", "Your images", data, PROTOCOL, tuple(rows))


def _rows_of_size(texts: Mapping[str, str], size: Size, effort: Effort) -> list[Row]:
    """Return the rows of a size: frozen, a head on frozen features, and fine-tuned by each loss."""
    is_pretrained = "pretrained_model" in texts
    height, width = sides(size)
    common = {**texts, "image_shape": f"3,{height},{width}"}
    frozen = {**common, "loss_name": "softmax", "total_iter_num": "0"}
    rows = [Row(f"frozen, {size_text(size)}", frozen, is_frozen=True)]
    if is_pretrained:
        space = (parse_parameter("lr", ["log", "0.0001", "0.01"]),)
        rows.append(Row(f"head, {size_text(size)}", {**common, **HEAD}, space))

    rates = ["log", "0.00001", "0.0003"] if is_pretrained else ["log", "0.0003", "0.01"]
    recipe = FINE_TUNED if is_pretrained else FROM_SCRATCH
    for loss in effort.losses:
        own = {"lr_head_mult": "100"} if loss == "normsoftmax" else {"samples_each_class": "4"}
        own |= {"loss_name": loss, "num_epochs": str(effort.epochs)}
        space = (parse_parameter("lr", rates),)
        rows.append(Row(f"{loss}, {size_text(size)}", {**common, **recipe, **own}, space))
    return rows


def _seconds(images: OwnImages, texts: Mapping[str, str], size: Size, effort: Effort) -> float:
    """Estimate what the rows of a size take on a core."""
    epoch = images.num_train * _image_seconds(images, texts, size)
    trials = (PROTOCOL.trials + PROTOCOL.reserve) * (PROTOCOL.folds - 1)
    passes = len(effort.losses) * (trials + PROTOCOL.seeds) * effort.epochs
    frozen = (2 + HEAD_VIEWS) / 2  # a pass without gradients is half of one with them
    return (passes + frozen) * epoch


def last_seconds(images: OwnImages, texts: Mapping[str, str], effort: Effort) -> float:
    """Estimate what the last training, on all images, takes at most on a core."""
    if not effort.epochs:
        return 0.0
    sizes = sizes_of(images, texts, effort)
    longest = max(_image_seconds(images, texts, size) for size in sizes)
    return effort.epochs * images.num_all * longest


def _image_seconds(images: OwnImages, texts: Mapping[str, str], size: Size) -> float:
    cost = image_cost(texts["model"], 0, tuple(MODEL_OPTIONS.items()), sides(size), "auto")
    return cost.seconds + images.read_seconds


def winner_of(results: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the row that was best on the folds; ValueError where none came to an end."""
    able = [row for row in results["rows"] if row["validation"] and "figures" in row]
    if not able:
        raise ValueError(
            "no training came to its end: see the failures in the table, or go on with the same "
            "command"
        )
    best: Mapping[str, Any] = max(able, key=lambda row: row["validation"])
    return best


def make_best(board: Board, results: Mapping[str, Any], images: OwnImages, output: Path) -> Path:
    """Train the winner on all images, and write `best/`: weights, ONNX, index, report, figures."""
    found = winner_of(results)
    row = board.row(found["name"])
    flags = common_flags(board, row, found["settings"])
    flags.pop("test_start", None)
    flags |= {"csv": str(images.whole), "seed": "0", "test_iter_step": "0"}
    flags |= {"model_save_dir": OUTPUT, "run_name": LAST}
    log(f"{row.name} was best on the folds; it is trained on all {images.num_all:,} images now")
    task = Task(row.name, 0, None, LAST, row.script, flags)
    outcome = read_outcome(output / LAST)
    if outcome is None:
        outcome = run_task(task, output, Place(threads=usable_cores()), is_tested=False)
    if outcome.failure is not None:
        raise ValueError(f"the last training failed: {outcome.failure}")

    folder = output / "best"
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "model.pt"
    write_atomically(weights, lambda path: shutil.copyfile(output / LAST / "last.pt", path))
    expected = found["figures"]["recall@1"]
    write_json(folder / "expected.json", {"row": found["name"], "recall@1": expected})
    add_tools(weights, images, output / found["runs"][0] / "last.pt")

    low, high = expected["low"], expected["high"]
    interval = "" if low is None else f" (95 % interval {percent(low)} to {percent(high)})"
    log(
        f"{folder}: {row.name}. For new classes a Recall@1 of {percent(expected['mean'])}"
        f"{interval} is to be expected, as measured on those that were held out"
    )
    return folder


def add_tools(weights: Path, images: OwnImages, measured: Path) -> None:
    """Write, beside weights, their ONNX form, an index of all images, and a report.

    The report is on the held-out classes, of the training that was `measured` on them. What cannot
    be made is said, and the others are.
    """
    model = f"--pretrained_model={weights}"
    data = ["--dataset=csv", f"--csv={images.whole}", f"--data_dir={images.folder}"]
    index = [model, *data, "--split=train", f"--index={weights.with_name('images.index')}"]
    onnx = [model, "--export=onnx", f"--output={weights.with_name('model.onnx')}"]
    works: dict[str, Callable[[], object]] = {
        "model.onnx": lambda: infer.main(onnx),
        "images.index": lambda: infer.main([*index, "--batch_size=32"]),
        "report": lambda: report.main(
            [str(measured), f"--report_dir={weights.with_name('report')}"]
        ),
    }

    for name, work in works.items():
        try:
            work()
        except SystemExit:  # its line is on the screen
            log(f"{weights.with_name(name)} could not be made; all else is there")
