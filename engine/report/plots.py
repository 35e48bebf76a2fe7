"""Pictures of what a run learned: loss curves, queries and neighbours, a map of embeddings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import hsv_to_rgb
from matplotlib.patheffects import withStroke

from metric_learning.common.atomic import write_atomically
from metric_learning.common.names import to_line
from metric_learning.engine.evaluate.neighbours import NEUTRAL, Tile, draw_tiles
from metric_learning.engine.report.embedding_map import HEIGHT, WIDTH, EmbeddingMap, spread
from metric_learning.engine.report.figures import scale_losses
from metric_learning.engine.report.files import GENERATOR
from metric_learning.engine.run.records import curve_of, read_records
from metric_learning.reader.sets.image_set import Decoding, decode_file
from metric_learning.retrieval.search import nearest

matplotlib.use("Agg")

from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from metric_learning.engine.evaluate.lettering import letter_legend, shorten  # noqa: E402

MAX_NAMED = 100  # classes that a picture names; more would be a list longer than the map
MAX_LETTERS = 26  # of a name in a picture
LINE_INCHES = 0.19  # height of a line of names
NUMBER_SIZE = (22, 14)  # width and height of a number on the map, in its px
SHAPES, STYLES = "os^Dv", ("-", "--", "-.")


def plot_curves(run_folders: Sequence[Path], picture: Path) -> None:
    """Draw the training loss and the Recall@1 of the tests of runs over each other, and chance."""
    figure, (loss_axis, recall_axis) = plt.subplots(1, 2, figsize=(11, 4.6))
    records = [read_records(folder / "stats.jsonl") for folder in run_folders]
    losses = [curve_of(each, "train", "loss") for each in records]
    scale_losses(loss_axis, (values for _, values in losses))
    for number, (loss, each) in enumerate(zip(losses, records, strict=True)):
        look: dict[str, Any] = {"color": f"C{number}", "label": ".", "marker": "."}
        look["linestyle"] = STYLES[number // 10 % len(STYLES)]
        loss_axis.plot(*loss, **look)
        recall_axis.plot(*curve_of(each, "test", "recall@1"), **look)
        steps, chances = curve_of(each, "test", "recall@1_chance")
        recall_axis.plot(steps, chances, linestyle=":", color=NEUTRAL)

    for axis, name in ((loss_axis, "training loss"), (recall_axis, "Recall@1 of the tests")):
        axis.set(xlabel="step", title=name)
        axis.grid(alpha=0.3)
    recall_axis.set_ylim(0, 1)
    recall_axis.plot([], [], linestyle=":", color=NEUTRAL, label=".")
    names = [shorten(to_line(folder.name), MAX_LETTERS) for folder in run_folders]
    legend = recall_axis.legend(loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False)
    letter_legend(legend, [*names, "chance"])
    _save(figure, picture)


def plot_neighbours(
    features: np.ndarray,
    labels: np.ndarray,
    paths: Sequence[str],
    picture: Path,
    num_queries: int = 8,
    k: int = 6,
    seed: int = 0,
) -> None:
    """Draw random queries, each with its k nearest images, right and wrong ones marked.

    The features are (N, D) float, the labels (N,) integer, the paths N image files.
    """
    k = min(k, len(features) - 1)
    rng = np.random.default_rng(seed)
    queries = np.sort(rng.choice(len(features), min(num_queries, len(features)), replace=False))
    neighbours, cosines = nearest(features[queries], features, k, own_rows=queries)

    rows = []
    for query, found, similar in zip(queries.tolist(), neighbours, cosines, strict=True):
        tiles = [Tile(_read(paths[query]), str(labels[query]))]
        for row, cosine in zip(found.tolist(), similar.tolist(), strict=True):
            is_right = bool(labels[row] == labels[query])
            tiles.append(Tile(_read(paths[row]), f"{labels[row]}, {cosine:.2f}", is_right))
        rows.append(tiles)
    _save(draw_tiles(rows), picture)


def _read(path: str) -> np.ndarray:
    """Decode an image file as people see it."""
    return decode_file(path, Decoding("white"))


def plot_map(
    layout: EmbeddingMap, labels: np.ndarray, class_names: dict[int, str], picture: Path
) -> None:
    """Draw the images of a map as dots in the colour and shape of their class.

    The number of a class stands where its images are; of up to 100 classes a list below the map
    has the names that belong to the numbers.
    """
    present, numbers = np.unique(labels[layout.rows], return_inverse=True)
    is_named = len(present) <= MAX_NAMED
    columns = min(4, math.ceil(len(present) / 5))
    num_lines = math.ceil(len(present) / columns) if is_named else 0
    figure, axis = plt.subplots(figsize=(12, 8 + LINE_INCHES * num_lines))
    looks = [class_look(number) for number in range(len(present))]
    for number, (colour, shape) in enumerate(looks):
        x, y = layout.centres[numbers == number].T
        axis.scatter(x, y, s=14, color=[colour], marker=shape, linewidths=0, label=".")

    middles = np.array([middle_of(layout.centres[numbers == n]) for n in range(len(present))])
    if is_named:
        _number_classes(axis, middles, [colour for colour, _ in looks])
    axis.set(xlim=(0, WIDTH), ylim=(HEIGHT, 0))  # y counts from the top
    axis.set_aspect("equal")
    axis.set_axis_off()
    axis.set_title(f"{layout.method} of {len(layout.rows)} embeddings of {len(present)} classes")
    if is_named:
        legend = axis.legend(
            loc="upper center",
            bbox_to_anchor=(0.5, 0),
            ncols=columns,
            frameon=False,
            fontsize=9,
            handletextpad=0.2,
        )
        names = [shorten(class_names[label], MAX_LETTERS) for label in present.tolist()]
        letter_legend(legend, [f"{place}: {name}" for place, name in enumerate(names, start=1)])
    _save(figure, picture)


def class_look(number: int) -> tuple[np.ndarray, str]:
    """Return colour and shape of the dots of a class; those of neighbouring numbers differ."""
    hue = number * 0.381966 % 1  # the golden angle
    lightness = (0.62, 0.8, 0.45)[number % 3]
    return hsv_to_rgb((hue, 0.85, lightness)), SHAPES[number % len(SHAPES)]


def middle_of(centres: np.ndarray) -> np.ndarray:
    """Return the point (2,) of some (N, 2) that is nearest to their median."""
    distances = np.linalg.norm(centres - np.median(centres, axis=0), axis=1)
    return centres[distances.argmin()]


def _number_classes(axis: Axes, middles: np.ndarray, colours: Sequence[Any]) -> None:
    """Write the number of each class at its middle, or beside it where another one stands."""
    places = spread(middles, NUMBER_SIZE)
    for number, (place, middle) in enumerate(zip(places, middles, strict=True), start=1):
        if np.abs(place - middle).max() > NUMBER_SIZE[1]:
            axis.plot(*zip(place, middle, strict=True), color=NEUTRAL, linewidth=0.6)

        axis.text(
            float(place[0]),
            float(place[1]),
            str(number),
            color=colours[number - 1],
            fontsize=9,
            fontweight="bold",
            ha="center",
            va="center",
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )


def _save(figure: Figure, picture: Path) -> None:
    figure.tight_layout()
    software = {"Software": GENERATOR}
    try:
        write_atomically(
            picture,
            lambda file: figure.savefig(
                file, format="png", dpi=100, metadata=software, bbox_inches="tight"
            ),
        )
    finally:
        plt.close(figure)
