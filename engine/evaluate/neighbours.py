"""Queries and their nearest images as one picture, right and wrong ones marked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from metric_learning.common.names import to_line
from metric_learning.engine.evaluate.lettering import letter, shorten
from metric_learning.reader import ImageSet
from metric_learning.reader.sets.image_set import Decoding
from metric_learning.retrieval.inputs import find_own_rows
from metric_learning.retrieval.search import nearest

RIGHT, WRONG, NEUTRAL = "#1a7f37", "#cf222e", "#57606a"
NUM_QUERIES, NUM_NEIGHBOURS = 6, 5
LETTERS = 18  # of the name of a class


class Tile(NamedTuple):
    """An image (H, W, 3) uint8 of such a picture; `is_right` is None for the query itself."""

    image: np.ndarray
    title: str
    is_right: bool | None = None


def draw_tiles(rows: Sequence[Sequence[Tile]]) -> Figure:
    """Draw rows of a query and its nearest images; a frame and a word mark the wrong ones."""
    columns = max(map(len, rows))
    figure = Figure(figsize=(1.5 * columns, 1.75 * len(rows)))
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes, tiles in zip(grid, rows, strict=True):
        for axis, tile in zip(axes, tiles, strict=True):
            _draw(axis, tile)
    figure.suptitle("queries and their nearest images: class, cosine similarity")
    return figure


def _draw(axis: Axes, tile: Tile) -> None:
    colour = {None: NEUTRAL, True: RIGHT, False: WRONG}[tile.is_right]
    mark = {None: "query", True: "right", False: "wrong"}[tile.is_right]
    axis.imshow(tile.image)
    letter(axis.set_title("", fontsize=8, color=colour), f"{mark}: {tile.title}")
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set(color=colour, linewidth=3)


def picture_of_neighbours(
    image_set: ImageSet, embeddings: np.ndarray, decoding: Decoding, seed: int
) -> np.ndarray:
    """Return a picture (H, W, 3) uint8 of some queries of an image set and what they find.

    The embeddings (N, D) are in the order of the set; the queries are those of the seed, so that
    pictures of several tests can be compared.
    """
    asking, gallery = np.flatnonzero(image_set.is_query), np.flatnonzero(image_set.is_gallery)
    own_rows = find_own_rows(image_set.is_query, image_set.is_gallery)
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(len(asking), min(NUM_QUERIES, len(asking)), replace=False))
    count = min(NUM_NEIGHBOURS, len(gallery) - (own_rows is not None))
    neighbours, cosines = nearest(
        embeddings[asking[chosen]],
        embeddings[gallery],
        count,
        own_rows=None if own_rows is None else own_rows[chosen],
    )

    def tile(row: int, query: int | None = None, cosine: float = 1.0) -> Tile:
        label = int(image_set.labels[row])
        name = shorten(to_line(image_set.class_names[label]), LETTERS)
        image = image_set.read_image(row, decoding)
        if query is None:
            return Tile(image, name)
        return Tile(image, f"{name}, {cosine:.2f}", label == int(image_set.labels[query]))

    rows = []
    for query, found, similar in zip(asking[chosen], gallery[neighbours], cosines, strict=True):
        pairs = zip(found.tolist(), similar.tolist(), strict=True)
        rows.append([tile(int(query)), *(tile(row, int(query), one) for row, one in pairs)])
    figure = draw_tiles(rows)
    figure.tight_layout()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
