"""How the trainings of a board went: loss and recall over the images seen, thinned for a page."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from metric_learning.common.names import printable
from metric_learning.common.schema import is_count
from metric_learning.engine.leaderboard.trainings.work import settled_flags
from metric_learning.engine.run.records import curve_of, read_records

MOST_POINTS = 200  # of a curve
DIGITS = 4  # of a number in the page
LEAST_START = 1e-6  # of a loss that is shown relative to it
# What the record of a training step holds -> the name of its curve.
MEASURES = ("loss", "recall")

Curve = list[list[float]]  # images seen, and values


def curves_of(folder: Path) -> dict[str, Curve]:
    """Return the curves of a run folder that there are: `loss`, `relative` and `recall`.

    `relative` is the loss by its first record, where that is above 0. A run that has not begun, or
    whose files are damaged, has no curves.
    """
    try:
        found = (folder / "stats.jsonl").stat()
        return _read(folder, found.st_size, found.st_mtime_ns)
    except (OSError, ValueError):
        return {}


@lru_cache(maxsize=1024)
def _read(folder: Path, size: int, changed: int) -> dict[str, Curve]:
    """Read the curves of a run once, as long as its records have a size and time of change."""
    records = read_records(folder / "stats.jsonl")
    batch = settled_flags(folder).get("train_batch_size")
    if not is_count(batch):
        raise ValueError(f"{folder}: expected a train_batch_size in args.json")
    curves = {}
    for name in MEASURES:
        steps, values = curve_of(records, "train", name)
        if not steps:
            continue
        images = np.array(steps, float) * batch
        curves[name] = thinned(images, np.array(values))
        if name == "loss" and values[0] >= LEAST_START:
            curves["relative"] = thinned(images, np.array(values) / values[0])
    return curves


def thinned(places: np.ndarray, values: np.ndarray) -> Curve:
    """Return a curve of at most MOST_POINTS points, the means of as many stretches.

    `places` and `values` are (N,) float; its first and last place stay.
    """
    stretches = min(len(places), MOST_POINTS)
    means = [
        [_short(part.mean()) for part in parts]
        for parts in zip(
            np.array_split(places, stretches), np.array_split(values, stretches), strict=True
        )
    ]
    means[0][0], means[-1][0] = _short(places[0]), _short(places[-1])
    return means


def _short(number: float) -> float:
    return float(f"{number:.{DIGITS}g}")


def chart_of(rows: list[Mapping[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """Return the curves of the first seed of each row of a table that has any."""
    found = []
    for row in rows:
        curves = curves_of(folder / row["runs"][0]) if row["runs"] else {}
        if curves:
            found.append({"name": printable(row["name"]), "curves": curves})
    return found
