"""What a page shows of an image: a small JPEG, the names of its class, and its file."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from metric_learning.common.pictures import data_uri, small_jpeg
from metric_learning.engine.report.data import Found, Subject

Row = dict[str, Any]
Album = Callable[[int], Row]  # row of the subject -> what is shown of its image
PIXELS = 256  # longer side of a picture that can be enlarged; shown smaller at first


def jpeg_of(image: np.ndarray, pixels: int) -> str:
    """Return an image (H, W, 3) uint8 as a JPEG of at most so many pixels a side, a data URI."""
    return data_uri(small_jpeg(image, pixels))


def album_of(subject: Subject) -> Album:
    """Return a function that says what is shown of an image: `source`, class and file names."""

    @cache
    def look_up(row: int) -> Row:
        path = str(subject.paths[row]) if len(subject.paths) else ""
        return {
            "source": jpeg_of(subject.read_image(row), PIXELS),
            "file": Path(path).name,
            "path": path,
            **names_of(subject, int(subject.labels[row])),
        }

    return look_up


def names_of(subject: Subject, label: int) -> Row:
    """Return the `name` of a class, and that of its `super_class`, empty where it has none."""
    return {"name": subject.class_names[label], "super_class": subject.super_classes.get(label, "")}


def query_row(subject: Subject, found: Found, album: Album, place: int) -> Row:
    """Return one query with its neighbours, and how well it did."""
    row = int(found.rows[place])
    return {
        **album(row),
        "hits": hits_of(subject, found, album, place),
        "first_rank": int(found.scores.first_rank[place]),
        "num_positives": int(found.scores.num_positives[place]),
        "average_precision": float(found.scores.columns["map"][place]),
    }


def hits_of(subject: Subject, found: Found, album: Album, place: int) -> list[Row]:
    """Return the first neighbours of a query, whether each is right, and its cosine."""
    label = subject.labels[found.rows[place]]
    pairs = found.neighbours[place].tolist(), found.cosines[place].tolist()
    return [
        {
            **album(neighbour),
            "is_right": bool(subject.labels[neighbour] == label),
            "cosine": cosine,
        }
        for neighbour, cosine in zip(*pairs, strict=True)
    ]
