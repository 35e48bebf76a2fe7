"""The numbers of a dump in fewer bits, and what that costs."""

from __future__ import annotations

import numpy as np
import torch

from metric_learning.engine.embed.dump.partial import Partial, WorthlessError
from metric_learning.reader import ImageSet
from metric_learning.retrieval.search import nearest
from metric_learning.retrieval.unit import unit_rows

MOST_INT8 = 127


def to_dtype(features: np.ndarray, name: str) -> dict[str, np.ndarray]:
    """Convert features (B, D) float32: `features` and, of int8, their `scales` (B,) float32.

    A row of int8 times its scale is the row, to within half a scale, which is a 127th of the row's
    largest number. Raises ValueError where float16 cannot hold a number.
    """
    if name == "float32":
        return {"features": features}
    if name == "float16":
        with np.errstate(over="ignore"):
            halves = features.astype(np.float16)
        if not np.isfinite(halves).all():
            largest = float(np.abs(features).max())
            raise WorthlessError(
                f"a feature of {largest:.6g} is too large for --feature_dtype=float16: give "
                "--normalize, or another type"
            )
        return {"features": halves}

    scales = np.abs(features).max(1) / np.float32(MOST_INT8)
    divisors = np.where(scales > 0, scales, np.float32(1))[:, None]
    rounded = np.rint(features / divisors).clip(-MOST_INT8, MOST_INT8)
    return {"features": rounded.astype(np.int8), "scales": scales}


def to_float32(features: np.ndarray, scales: np.ndarray | None = None) -> np.ndarray:
    """Return the features (B, D) float32 that `to_dtype` converted."""
    rows = np.asarray(features, np.float32)
    return rows if scales is None else rows * scales[:, None]


def normalised(features: np.ndarray) -> np.ndarray:
    """Divide features (B, D) float32 by their Euclidean norms."""
    return unit_rows(features).numpy()


def describe_cost(partial: Partial, image_set: ImageSet, device: torch.device) -> str:
    """Say what the Recall@1 of readable images is before and after the conversion."""
    plan = partial.plan
    broken = {number for found in partial.done.values() for number, _, _ in found}
    kept = np.array([n for n in range(plan.num_images) if n not in broken], np.int64)
    columns = {column.stem: column for column in plan.columns}
    values = {
        stem: partial.read(column, range(plan.num_images))[kept] for stem, column in columns.items()
    }
    found = to_float32(values["features"], values.get("scales"))
    labels = image_set.labels[kept]
    before, after = (recall(rows, labels, device) for rows in (values["exact"], found))
    return (
        f"Recall@1 of {columns['features'].dtype} features {after:.5f}, of float32 {before:.5f} "
        f"({after - before:+.5f})"
    )


def recall(features: np.ndarray, labels: np.ndarray, device: torch.device) -> float:
    """Return the share of features (N, D) whose nearest other one has their label (N,)."""
    if len(features) < 2:
        return 0.0
    rows, _ = nearest(features, features, 1, np.arange(len(features)), device)
    return float((labels[rows[:, 0]] == labels).mean())
