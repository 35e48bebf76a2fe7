"""Pictures of what a run learned: loss curves, queries and neighbours, a map of embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np

from metric_learning.common.atomic import write_atomically
from metric_learning.common.names import to_line
from metric_learning.engine.report.files import GENERATOR
from metric_learning.engine.run.records import curve_of, read_records
from metric_learning.reader.sets.image_set import Decoding, decode_image, read_file
from metric_learning.retrieval.search import nearest

if TYPE_CHECKING:
    from metric_learning.engine.report.embedding_map import EmbeddingMap

matplotlib.use("Agg")

from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from metric_learning.engine.report.lettering import letter, letter_legend  # noqa: E402

MAX_NAMED = 20  # classes that a picture names; of more the colours cannot be told apart
RIGHT, WRONG, NEUTRAL = "#1a7f37", "#cf222e", "#57606a"


def plot_curves(run_folders: Sequence[Path], picture: Path) -> None:
    """Draw the training loss and the Recall@1 of the tests of each run, from its stats.jsonl."""
    figure, rows = plt.subplots(2, len(run_folders), squeeze=False, figsize=(10, 6))
    for folder, (loss_axis, recall_axis) in zip(run_folders, rows.T, strict=True):
        records = read_records(folder / "stats.jsonl")
        for axis, kind, name in (
            (loss_axis, "train", "loss"),
            (recall_axis, "test", "recall@1"),
        ):
            axis.plot(*curve_of(records, kind, name), marker=".")
            letter(axis.set_title(""), f"{to_line(folder.name)}: {name}")
            axis.set(xlabel="step")
            axis.set_ylim(bottom=0, top=1 if kind == "test" else None)
            axis.grid(alpha=0.3)
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

    figure, axes = plt.subplots(
        len(queries), k + 1, squeeze=False, figsize=(1.5 * (k + 1), 1.75 * len(queries))
    )
    for row, query in enumerate(queries):
        _draw(axes[row, 0], paths[query], f"query: {labels[query]}", NEUTRAL)
        for column in range(k):
            found = neighbours[row, column]
            is_right = labels[found] == labels[query]
            mark = "right" if is_right else "wrong"
            title = f"{mark}: {labels[found]}, {cosines[row, column]:.2f}"
            _draw(axes[row, column + 1], paths[found], title, RIGHT if is_right else WRONG)

    figure.suptitle("queries and their nearest images: class, cosine similarity")
    _save(figure, picture)


def plot_map(
    layout: EmbeddingMap, labels: np.ndarray, class_names: dict[int, str], picture: Path
) -> None:
    """Draw the images of a map as dots in the colour of their class; up to 20 are named there."""
    present, numbers = np.unique(labels[layout.rows], return_inverse=True)
    colours = plt.get_cmap("tab20" if len(present) > 10 else "tab10")
    figure, axis = plt.subplots(figsize=(10, 7))
    for number, label in enumerate(present.tolist()):
        x, y = layout.centres[numbers == number].T
        colour = colours(number % colours.N)
        axis.scatter(x, y, s=12, color=colour, linewidths=0, label=str(label))

    axis.invert_yaxis()  # y counts from the top
    axis.set_aspect("equal")
    axis.set_axis_off()
    axis.set_title(f"{layout.method} of {len(layout.rows)} embeddings")
    if len(present) <= MAX_NAMED:
        legend = axis.legend(
            loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, markerscale=2
        )
        letter_legend(legend, [class_names[label] for label in present.tolist()])
    _save(figure, picture)


def _draw(axis: Axes, path: str, title: str, colour: str) -> None:
    axis.imshow(decode_image(read_file(path), path, Decoding("white")))  # as people see it
    axis.set_title(title, fontsize=8, color=colour)
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set(color=colour, linewidth=3)


def _save(figure: Figure, picture: Path) -> None:
    figure.tight_layout()
    software = {"Software": GENERATOR}
    try:
        write_atomically(
            picture, lambda file: figure.savefig(file, format="png", dpi=100, metadata=software)
        )
    finally:
        plt.close(figure)
