"""What eval.py measures where a part of the classes is left out of the gallery: --open_set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from metric_learning.engine.evaluate.scoring import Roles
from metric_learning.retrieval.groups import Groups
from metric_learning.retrieval.inputs import find_own_rows
from metric_learning.retrieval.open_set import (
    Answers,
    auroc,
    best_threshold,
    cross_f1,
    detection_rates,
    detection_thresholds,
)
from metric_learning.retrieval.positives import Positives
from metric_learning.retrieval.search import nearest


def choose_unknown(images: Roles, share: float, seed: int) -> np.ndarray:
    """Draw the classes (C,) int64 that are left out of the gallery, a share of all that it holds.

    Raises ValueError where the share makes none of them unknown, or leaves less than two known.
    """
    classes = np.intersect1d(images.labels[images.is_query], images.labels[images.is_gallery])
    number = round(share * len(classes))
    if not 1 <= number <= len(classes) - 2:
        raise ValueError(
            f"--open_set={share:g}: of {len(classes)} classes with queries that makes {number} "
            "unknown, expected 1 or more and two that are left: give another share"
        )
    return np.sort(np.random.default_rng(seed).permutation(classes)[:number])


@dataclass(frozen=True, eq=False)
class OpenSetTest:
    """What queries find where the classes (U,) int64 `unknown` are left out of the gallery.

    `halves` are 0 or 1 of each known and each unknown query, see `cross_f1`.
    """

    answers: Answers
    halves: tuple[np.ndarray, np.ndarray]
    unknown: np.ndarray


def answer_open_set(
    images: Roles, embeddings: np.ndarray, share: float, seed: int, device: str | torch.device
) -> OpenSetTest:
    """Look up the nearest image of every query where a share of the classes is left out.

    They are drawn with the seed. Queries of the other classes count where a positive is left to
    them.
    """
    unknown = choose_unknown(images, share, seed)
    is_unknown = np.isin(images.labels, unknown)
    is_gallery = images.is_gallery & ~is_unknown
    queries, gallery = np.flatnonzero(images.is_query), np.flatnonzero(is_gallery)
    own_rows = find_own_rows(images.is_query, is_gallery)
    positives, left_out = _find_positives(images, queries, gallery, own_rows)
    rows = embeddings[queries], embeddings[gallery]
    best, cosines = nearest(*rows, 1, own_rows, device, left_out)

    is_known, asks_in_vain = positives > 0, is_unknown[queries]
    labels = images.labels[queries]
    is_right = images.labels[gallery][best[:, 0]] == labels
    answers = Answers(cosines[is_known, 0], is_right[is_known], cosines[asks_in_vain, 0])
    halves = _halves(labels, unknown, seed)
    return OpenSetTest(answers, (halves[is_known], halves[asks_in_vain]), unknown)


def measure_open_set(test: OpenSetTest) -> dict[str, Any]:
    """Measure how well the nearest image's cosine tells whether a query's class is in the gallery.

    Returns:
        `open_set_auroc`; `dir@far=F`, at the cosines `dir_threshold@far=F`; `open_set_f1`, where it
        can be (`cross_f1`); `open_set_threshold`, the cosine with the greatest F1; and the numbers
        `unknown_classes`, `known_queries` and `unknown_queries`.
    """
    answers = test.answers
    f1 = cross_f1(answers, test.halves)
    return {
        "open_set_auroc": auroc(answers),
        **detection_rates(answers),
        **detection_thresholds(answers),
        **({} if f1 is None else {"open_set_f1": f1}),
        "open_set_threshold": best_threshold(answers),
        "unknown_classes": len(test.unknown),
        "known_queries": len(answers.known),
        "unknown_queries": len(answers.unknown),
    }


def _find_positives(
    images: Roles, queries: np.ndarray, gallery: np.ndarray, own_rows: np.ndarray | None
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray] | None]:
    """Count each query's positives, (Q,) int64, and find the pairs that its group rules out."""
    labels = images.labels[queries], images.labels[gallery]
    asked, found = Positives(*labels, own_rows).pairs(np.arange(len(queries)))
    if images.groups is None:
        return np.bincount(asked, minlength=len(queries)), None
    groups = Groups(images.groups[queries], images.groups[gallery])
    is_ignored = groups.are_same(asked, found)
    counts = np.bincount(asked[~is_ignored], minlength=len(queries))
    return counts, (asked[is_ignored], found[is_ignored])


def _halves(labels: np.ndarray, unknown: np.ndarray, seed: int) -> np.ndarray:
    """Divide the classes of labels (Q,), known and unknown ones, into 0 and 1 at random."""
    classes, places = np.unique(labels, return_inverse=True)
    half = np.empty(len(classes), np.int64)
    rng = np.random.default_rng([1, seed])
    for part in (np.isin(classes, unknown), ~np.isin(classes, unknown)):
        half[part] = rng.permutation(np.arange(int(part.sum())) % 2)
    return half[places.reshape(-1)]


def log_open_set(metrics: dict[str, Any], say: Callable[[str], object]) -> None:
    """Log what was measured, where it was."""
    if "open_set_auroc" not in metrics:
        return
    say(
        f"open set: {metrics['unknown_classes']} classes left out of the gallery, "
        f"{metrics['known_queries']} queries of known classes, {metrics['unknown_queries']} of "
        "unknown ones"
    )
    names = [
        "open_set_auroc",
        *(name for name in metrics if name.startswith(("dir@", "dir_threshold@"))),
        "open_set_f1",
    ]
    found = [f"{name} {metrics[name]:.5f}" for name in names if name in metrics]
    say(", ".join([*found, f"open_set_threshold {metrics['open_set_threshold']:.5f}"]))
