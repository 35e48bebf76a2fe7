"""Divides the images of a list into train, val and test, or into folds; by class or within."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from sklearn.model_selection import StratifiedKFold

from metric_learning.data.prepare.ties import NONE, Ties
from metric_learning.reader.sets.csv_files import SPLIT_WORDS, ImageList
from metric_learning.reader.sets.table import SPLITS


def split_by_size(labels: list[str], min_n_samples: int, max_n_samples: int) -> list[str]:
    """Give each image its split, train if its class has a number of images in the range, or test.

    The largest number may be 0: no limit. Raises ValueError where all classes are on one side.
    """
    sizes = Counter(labels)
    most = max_n_samples or max(sizes.values())
    is_train = {label: min_n_samples <= size <= most for label, size in sizes.items()}
    if len(set(is_train.values())) < 2:
        who = "every class has" if all(is_train.values()) else "no class has"
        raise ValueError(
            f"{who} {min_n_samples} to {most} images (they have {min(sizes.values())} to "
            f"{max(sizes.values())}): choose --min_n_samples and --max_n_samples so that classes "
            "within are trained on and others are left for the test"
        )
    return ["train" if is_train[label] else "test" for label in labels]


def split_by_share(
    labels: list[str],
    ties: Ties,
    test_share: float,
    val_share: float,
    is_closed: bool,
    seed: int,
) -> list[str]:
    """Give each image its split by shares: of the classes, or of the images of each class.

    Args:
        labels: N class names.
        ties: of the N images; those that are tied are not divided, nor, in an open set, the
            classes that they join.
        test_share: share of the test, above 0; with val_share below 1.
        val_share: share of the validation; 0: none.
        is_closed: whether each class is divided (closed set) or whole classes are (open set).
        seed: another one, another division.

    Raises:
        ValueError: a split stays empty.
    """
    shares = {"train": 1 - test_share - val_share, "val": val_share, "test": test_share}
    names = [name for name, share in shares.items() if share > 0]
    classes = np.unique(labels, return_inverse=True)[1]
    units = ties.join(np.arange(len(labels)) if is_closed else classes)
    weighed = labels if is_closed else [""] * len(labels)
    firsts = None if is_closed else np.unique(labels, return_index=True)[1]
    sides = _deal(units, weighed, firsts, [shares[name] for name in names], seed)

    empty = [name for number, name in enumerate(names) if number not in sides]
    if empty:
        what = "images of each class" if is_closed else "classes"
        joined = "" if ties.groups is None else f", or divide groups with --group={NONE}"
        if ties.copies is not None:
            joined += f", or divide near duplicates with --threshold={NONE}"
        raise ValueError(
            f"nothing is left for {empty[0]}: give it a larger share of the {what} "
            f"({len(set(units.tolist())):,} parts that stay together){joined}"
        )
    return [names[side] for side in sides]


def _deal(
    units: np.ndarray,
    labels: list[str],
    counted: np.ndarray | None,
    shares: Sequence[float],
    seed: int,
) -> np.ndarray:
    """Deal units out so that each side gets its share of each label, as far as units allow.

    The largest unit comes first, to the side that lacks most of what it holds; the seed decides
    among units of one size. Of the N images those `counted` have weight, None: all. Returns the
    side of each image, (N,) int64.
    """
    rows = np.arange(len(units)) if counted is None else counted
    label_numbers = np.unique(labels, return_inverse=True)[1]
    lacking = np.outer(shares, np.bincount(label_numbers[rows]))  # sides x labels
    rng = np.random.default_rng(seed)
    num_units = int(units.max()) + 1
    order = rng.permutation(num_units)
    sizes = np.bincount(units[rows], minlength=num_units)
    order = order[np.argsort(-sizes[order], kind="stable")]

    by_unit = rows[np.argsort(units[rows], kind="stable")]
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    side_of = np.zeros(num_units, dtype=np.int64)
    for unit in order:
        found = label_numbers[by_unit[bounds[unit] : bounds[unit + 1]]]
        side_of[unit] = lacking[:, found].sum(1).argmax()
        np.subtract.at(lacking[side_of[unit]], found, 1)
    return side_of[units]


def closed_folds(labels: list[str], ties: Ties, k: int, seed: int) -> np.ndarray:
    """Divide images into k folds with the same share of every class: (N,) int64; or ValueError."""
    small = {label: size for label, size in Counter(labels).items() if size < k}
    if small and ties.groups is None:
        label = min(small, key=lambda name: (small[name], name))
        raise ValueError(
            f"--k={k}, but {len(small)} classes have fewer images, e.g. {label!r} has "
            f"{small[label]}: lower --k, or give --open_set=True, or set such classes aside first "
            f"with split --min_n_samples={k} --max_n_samples=0"
        )
    units = ties.join(np.arange(len(labels)))
    num_units = len(np.unique(units))
    if num_units < k:
        raise ValueError(f"--k={k}, but there are {num_units} groups: lower --k")
    if ties.groups is not None or num_units < len(labels):
        return _deal(units, labels, None, [1 / k] * k, seed)

    folds = np.empty(len(labels), dtype=np.int64)
    division = StratifiedKFold(k, shuffle=True, random_state=seed)
    for fold, (_, rows) in enumerate(division.split(np.zeros(len(labels)), labels)):
        folds[rows] = fold
    return folds


def open_folds(labels: list[str], ties: Ties, k: int, seed: int) -> np.ndarray:
    """Divide classes into k folds with about the same number of images: (N,) int64; or ValueError.

    The largest classes are dealt out first, each to the fold with the fewest images; the seed
    decides among classes of one size. Classes that are tied stay together.
    """
    classes = np.unique(labels, return_inverse=True)[1]
    parts = ties.join(classes)
    _, numbers, sizes = np.unique(parts, return_inverse=True, return_counts=True)
    if len(sizes) < k:
        is_joined = len(sizes) <= classes.max()
        what = "parts of classes that stay together" if is_joined else "classes"
        raise ValueError(f"--k={k}, but there are {len(sizes)} {what}: lower --k")
    shuffled = np.random.default_rng(seed).permutation(len(sizes))
    fold_of = np.empty(len(sizes), dtype=np.int64)
    filled = np.zeros(k, dtype=np.int64)
    for number in shuffled[np.argsort(-sizes[shuffled], kind="stable")]:
        fold_of[number] = filled.argmin()
        filled[fold_of[number]] += sizes[number]
    return fold_of[numbers]


def fold_column(images: ImageList, ties: Ties, k: int, open_set: bool, seed: int) -> list[str]:
    """Fold of each image as text; other images than those of the training split have none."""
    in_train = [is_training(row.get("split", "train")) for row in images.rows]
    rows = np.flatnonzero(in_train)
    if len(rows) == 0:
        raise ValueError(f"{images.file} has no training images to divide into folds")
    divide: Callable[..., np.ndarray] = open_folds if open_set else closed_folds
    folds = divide(images.select(rows).labels, ties.select(rows), k, seed)

    column = [""] * len(images.rows)
    for row, fold in zip(rows, folds, strict=True):
        column[row] = str(fold)
    return column


def is_training(split: str) -> bool:
    """Whether a cell of the column split means the training split."""
    return SPLIT_WORDS.get(split.lower()) == SPLITS[0]


def count_lonely(labels: Sequence[str]) -> int:
    """Count the images that have no other of their class, so that no retrieval scores them."""
    return sum(size == 1 for size in Counter(labels).values())
