"""Folds of the training images, of which one is held out to choose settings without the test."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from metric_learning.reader.sets.table import TRAIN, Table

NONE = "none"  # nothing is held out, whatever the data set itself holds out
SEED = 0  # of the folds: they are the same in all runs
FORM = re.compile(r"([0-9]{1,6})/([0-9]{1,6})(:images)?")


class Fold(NamedTuple):
    """A fold: its number from 0, how many there are in all, and whether classes are divided too."""

    number: int
    total: int
    of_images: bool


def parse_fold(text: str) -> Fold | None:
    """Read "2/5", the third of five folds of classes, "2/5:images" or "none", which is None.

    Raises ValueError for anything else.
    """
    shown = f"--val_fold={text}"
    if text == NONE:
        return None
    match = FORM.fullmatch(text.strip())
    if not match:
        raise ValueError(
            f"{shown}: expected a fold and their number, such as 0/5 or 0/5:images, or {NONE}"
        )
    fold = Fold(int(match[1]), int(match[2]), match[3] is not None)
    if fold.total < 2:
        raise ValueError(f"{shown}: expected at least 2 folds")
    if fold.number >= fold.total:
        raise ValueError(f"{shown}: folds are counted from 0, the last of them is {fold.total - 1}")
    return fold


def fold_rows(table: Table, fold: Fold, split: str) -> tuple[np.ndarray, str]:
    """Choose the training images of the other folds, or those that are held out.

    Returns:
        Numbers of the images, (n,) int64, and a line about them.

    Raises:
        ValueError: there are too few classes, or images of each, for so many folds.
    """
    divide = image_folds if fold.of_images else class_folds
    folds = divide(table.classes, fold.total)
    is_chosen = (folds == fold.number) != (split == TRAIN)
    num_classes = len(np.unique(table.classes[is_chosen]))
    what = "images" if fold.of_images else "classes"
    note = (
        f"{is_chosen.sum():,} images of {num_classes} classes, "
        f"{'without' if split == TRAIN else 'those of'} fold {fold.number} of {fold.total} "
        f"folds of training {what}"
    )
    return np.flatnonzero(is_chosen), note


def class_folds(labels: np.ndarray, count: int) -> np.ndarray:
    """Divide classes into folds of about as many images: of each image (N,) its fold, int64."""
    _, classes, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    if len(sizes) < count:
        raise ValueError(f"expected at least as many training classes as folds, found {len(sizes)}")
    order = np.random.default_rng(SEED).permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]

    fold_of, filled = np.empty(len(sizes), np.int64), np.zeros(count, np.int64)
    for number in order.tolist():  # the largest first, each where least is
        fold_of[number] = filled.argmin()
        filled[fold_of[number]] += sizes[number]
    return fold_of[classes]


def image_folds(labels: np.ndarray, count: int) -> np.ndarray:
    """Divide the images of each class into folds: of each image (N,) its fold, int64."""
    _, classes, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    if sizes.min() < 2 * count:
        raise ValueError(
            f"expected at least two images of each class in each of {count} folds, found a class "
            f"of {sizes.min()}"
        )
    shuffled = np.random.default_rng(SEED).permutation(len(classes))
    by_class = shuffled[np.argsort(classes[shuffled], kind="stable")]
    folds = np.empty(len(classes), np.int64)
    folds[by_class] = np.arange(len(classes)) % count  # goes on from class to class
    return folds
