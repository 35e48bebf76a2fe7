"""Divides the images of a list: classes into train and test by their size, images into folds."""

from __future__ import annotations

from collections import Counter

import numpy as np
from sklearn.model_selection import StratifiedKFold

from metric_learning.reader.sets.csv_files import ImageList


def split_classes(labels: list[str], min_n_samples: int, max_n_samples: int) -> list[str]:
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


def closed_folds(labels: list[str], k: int, seed: int) -> np.ndarray:
    """Divide images into k folds with the same share of every class: (N,) int64; or ValueError."""
    small = {label: size for label, size in Counter(labels).items() if size < k}
    if small:
        label = min(small, key=lambda name: (small[name], name))
        raise ValueError(
            f"--k={k}, but {len(small)} classes have fewer images, e.g. {label!r} has "
            f"{small[label]}: lower --k, or give --open_set=True, or set such classes aside first "
            f"with split --min_n_samples={k} --max_n_samples=0"
        )
    folds = np.empty(len(labels), dtype=np.int64)
    division = StratifiedKFold(k, shuffle=True, random_state=seed)
    for fold, (_, rows) in enumerate(division.split(np.zeros(len(labels)), labels)):
        folds[rows] = fold
    return folds


def open_folds(labels: list[str], k: int, seed: int) -> np.ndarray:
    """Divide classes into k folds with about the same number of images: (N,) int64; or ValueError.

    The largest classes are dealt out first, each to the fold with the fewest images; the seed
    decides among classes of one size.
    """
    names, numbers, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    if len(names) < k:
        raise ValueError(f"--k={k}, but there are {len(names)} classes: lower --k")
    shuffled = np.random.default_rng(seed).permutation(len(names))
    fold_of = np.empty(len(names), dtype=np.int64)
    filled = np.zeros(k, dtype=np.int64)
    for number in shuffled[np.argsort(-sizes[shuffled], kind="stable")]:
        fold_of[number] = filled.argmin()
        filled[fold_of[number]] += sizes[number]
    return fold_of[numbers]


def fold_column(images: ImageList, k: int, open_set: bool, seed: int) -> list[str]:
    """Fold of each image as text; test images of the column split, where it is there, have none."""
    in_train = [row.get("split", "train") == "train" for row in images.rows]
    rows = np.flatnonzero(in_train)
    if len(rows) == 0:
        raise ValueError(f"{images.file} has no training images to divide into folds")
    labels = images.select(rows).labels
    folds = (open_folds if open_set else closed_folds)(labels, k, seed)
    check_folds(folds, labels, k, open_set)
    column = [""] * len(images.rows)
    for row, fold in zip(rows, folds, strict=True):
        column[row] = str(fold)
    return column


def check_folds(folds: np.ndarray, labels: list[str], k: int, open_set: bool) -> None:
    """Raise ValueError where a fold (N,) int64 of the images has no two images of a class.

    Each fold is a test split, in which a query then had nothing to find.
    """
    for fold in range(k):
        sizes = Counter(label for label, other in zip(labels, folds, strict=True) if other == fold)
        if max(sizes.values()) > 1:
            continue
        most = max(Counter(labels).values()) // 2
        remedy = "set classes of one image aside first, with split --min_n_samples=2"
        if not open_set:
            lower = f"lower --k to {most} or less, or " if most > 1 else ""
            remedy = f"{lower}give --open_set=True, which leaves classes whole"
        raise ValueError(
            f"--k={k}: in fold {fold} every class has one image, so that as a test it could not be "
            f"scored, for no query would find another of its class: {remedy}"
        )
