"""Dumped features, opened with the paths and labels of their images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from metric_learning.common.packed_lines import open_lines
from metric_learning.common.schema import LARGEST_JSON, Field, check_fields, is_object, read_json
from metric_learning.common.text_files import read_text
from metric_learning.engine.embed.dump.layout import BOXES, LABELS, META, PATHS
from metric_learning.engine.embed.dump.shards import (
    ShardedFeatures,
    is_shard_table,
    open_embeddings,
    refuse_incomplete,
)

META_FIELDS = (
    Field("flags", "flags by name", is_object, is_needed=False),
    Field("checkpoint", "an object", is_object, is_needed=False),
    Field("depends_on", "an object", is_object, is_needed=False),
    Field("shards", "files and their numbers of rows", is_shard_table, is_needed=False),
)
LONG_LIST = 2**26  # bytes of paths.txt from which on its lines are read when they are asked for


@dataclass(frozen=True)
class Features:
    """What infer.py dumped: embeddings (N, D), mapped from the file or files, and their images.

    Those of several files are a `ShardedFeatures`, which is indexed as an array is. The paths are a
    list or, of millions, a sequence that reads them when they are asked for. The labels (N,) int64
    are None where they are not known, the boxes (N, 4) int32 where images are whole photos, see
    `crop_box`; `meta` says what made all.
    """

    embeddings: np.ndarray | ShardedFeatures
    paths: Sequence[str]
    labels: np.ndarray | None
    meta: dict[str, Any]
    boxes: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.paths)


def open_features(folder: str | PathLike[str]) -> Features:
    """Open the features that infer.py wrote into a folder, in one file or several.

    Raises ValueError where they are damaged, or the work on them was broken off.
    """
    folder = Path(folder)
    refuse_incomplete(folder)
    labels = boxes = None
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
        if (folder / BOXES).exists():
            boxes = np.loadtxt(folder / BOXES, np.int32, delimiter=",", ndmin=2)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{folder}: a file is damaged ({error}): run infer.py again") from error

    num_labels = len(paths) if labels is None else len(labels)
    num_boxes = len(paths) if boxes is None else len(boxes)
    if not len(embeddings) == len(paths) == num_labels == num_boxes:
        raise ValueError(
            f"{folder}: expected as many rows in features.npy as labels and paths, found features "
            f"of shape {embeddings.shape}, {num_labels} labels, {len(paths)} paths: run infer.py "
            "again"
        )
    return Features(embeddings, paths, labels, meta, boxes)
