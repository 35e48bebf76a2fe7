"""Models, search indexes and features, for programs in Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from metric_learning.common.log import log
from metric_learning.common.packed_lines import open_lines
from metric_learning.common.schema import LARGEST_JSON, Field, check_fields, is_object, read_json
from metric_learning.common.text_files import read_text
from metric_learning.engine.embed.dump import LABELS, META, PATHS
from metric_learning.engine.embed.dump.shards import (
    ShardedFeatures,
    is_shard_table,
    open_embeddings,
    refuse_incomplete,
)
from metric_learning.engine.embed.embedder import Embedder, load_embedder
from metric_learning.engine.embed.search import check_index, find_neighbours
from metric_learning.engine.options import evaluation
from metric_learning.engine.options.evaluation import default_flags, settle_embedding
from metric_learning.engine.options.tables import CHANGED_DATA_POLICIES
from metric_learning.engine.parallel.world import World
from metric_learning.reader.sets.image_set import MAX_PIXELS
from metric_learning.reader.sets.plain_images import is_one_image
from metric_learning.retrieval.indexes import SearchIndex

META_FIELDS = (
    Field("flags", "flags by name", is_object, is_needed=False),
    Field("checkpoint", "an object", is_object, is_needed=False),
    Field("depends_on", "an object", is_object, is_needed=False),
    Field("shards", "files and their numbers of rows", is_shard_table, is_needed=False),
)
LONG_LIST = 2**26  # bytes of paths.txt from which on its lines are read when they are asked for


def load(
    file: str | PathLike[str],
    *,
    device: str = "auto",
    batch_size: int = 50,
    num_workers: int = 0,
    max_pixels: int = MAX_PIXELS,
    tta_flip: bool = False,
    tta_scales: tuple[float, ...] = (),
) -> Embedder:
    """Load a model with its weights and its image pipeline.

    Args:
        file: a checkpoint of a training, or weights that infer.py --export wrote.
        device: auto (a GPU if there is one), cpu, cuda, cuda:1 and so on.
        batch_size: images that the network takes at once.
        num_workers: processes that read images; 0: this one alone.
        max_pixels: most pixels of an image file, in millions.
        tta_flip: average the embedding of an image with that of its mirror image.
        tta_scales: scales of an image whose embeddings are averaged; empty: it is as it is.

    Raises:
        ValueError: the file holds no weights, or does not say of which model.
        OSError: it cannot be read.
    """
    given = {"pretrained_model": str(file), "device": device, "max_pixels": max_pixels}
    views = {"tta_flip": tta_flip, "tta_scales": tuple(tta_scales)}
    flags = default_flags(**given, **views, batch_size=batch_size, num_workers=num_workers)
    options = settle_embedding(flags, World(), is_quiet=True)
    if not options.meta:
        raise ValueError(
            f"{file} does not say of which model it holds the weights: expected a checkpoint of a "
            "training; `metric-learning fetch-weights --convert` makes one of weights of others"
        )
    return load_embedder(options)


@dataclass(frozen=True)
class OpenIndex:
    """A search index, and the model that its images were embedded by."""

    search_index: SearchIndex
    embedder: Embedder

    def search(
        self, queries: Any, topk: int = 10
    ) -> list[dict[str, Any]] | list[list[dict[str, Any]]]:
        """Find the nearest images.

        Args:
            queries: images as the embedder takes them.
            topk: neighbours of each.

        Returns:
            The neighbours of one query, nearest first, each with `rank` (from 1), `row` in the
            index, `cosine`, `path` and `class_name` (None where it is not known); of several
            queries, a list of such lists.

        Raises:
            ValueError: `topk` is below 1 or above the number of images.
        """
        if not 1 <= topk <= len(self.search_index):
            raise ValueError(f"expected topk of 1 to {len(self.search_index)}, found {topk}")
        device = self.embedder.work.machine.device
        found = find_neighbours(self.search_index, self.embedder(queries), topk, device)
        return found[0] if is_one_image(queries) else found


def open_index(
    file: str | PathLike[str], embedder: Embedder, *, on_changed_data: str = "error"
) -> OpenIndex:
    """Open a search index that infer.py --index built with a model.

    Raises ValueError for one of other weights, or where its images have changed since, unless
    `on_changed_data` is accept: then they are found by what they were.
    """
    if on_changed_data not in CHANGED_DATA_POLICIES:
        policies = " or ".join(CHANGED_DATA_POLICIES)
        raise ValueError(f"expected on_changed_data of {policies}, found {on_changed_data!r}")
    search_index = evaluation.open_index(str(file), 1)
    for note in check_index(str(file), search_index, embedder, on_changed_data=on_changed_data):
        log(note)
    return OpenIndex(search_index, embedder)


@dataclass(frozen=True)
class Features:
    """What infer.py dumped: embeddings (N, D), mapped from the file or files, and their images.

    Those of several files are a `ShardedFeatures`, which is indexed as an array is. The paths are a
    list or, of millions, a sequence that reads them when they are asked for. The labels (N,) int64
    are None where they are not known; `meta` says what made all.
    """

    embeddings: np.ndarray | ShardedFeatures
    paths: Sequence[str]
    labels: np.ndarray | None
    meta: dict[str, Any]

    def __len__(self) -> int:
        return len(self.paths)


def open_features(folder: str | PathLike[str]) -> Features:
    """Open the features that infer.py wrote into a folder, in one file or several.

    Raises ValueError where they are damaged, or the work on them was broken off.
    """
    folder = Path(folder)
    refuse_incomplete(folder)
    labels = None
    try:
        meta = {}
        if (folder / META).exists():
            meta = check_fields(read_json(folder / META, META), META_FIELDS, META)
        embeddings = open_embeddings(folder, meta)
        paths: Sequence[str] = open_lines(folder / PATHS, PATHS)
        if (folder / PATHS).stat().st_size < LONG_LIST:
            paths = list(paths)
        if (folder / LABELS).exists():
            lines = read_text(folder / LABELS, LABELS, LARGEST_JSON).split()
            labels = np.array([int(line) for line in lines], dtype=np.int64)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{folder}: a file is damaged ({error}): run infer.py again") from error

    num_labels = len(paths) if labels is None else len(labels)
    if not len(embeddings) == len(paths) == num_labels:
        raise ValueError(
            f"{folder}: expected as many rows in features.npy as labels and paths, found features "
            f"of shape {embeddings.shape}, {num_labels} labels, {len(paths)} paths: run infer.py "
            "again"
        )
    return Features(embeddings, paths, labels, meta)
