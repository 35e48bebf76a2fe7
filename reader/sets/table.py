"""What the readers of data sets return, and the choice of classes in it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SPLITS = ("train", "test")


@dataclass(frozen=True, eq=False)
class Table:
    """Images that may be chosen for a split, before classes are chosen."""

    paths: list[str]  # N file paths, or names of images held in memory
    classes: np.ndarray  # (N,) int64 class numbers of the data set, ascending in class order
    class_names: dict[int, str]  # class number -> name
    # (N,) bool, the images of the split when no classes are chosen; None: all
    in_split: np.ndarray | None = None
    # class numbers that "1", "2", ... choose; None: those present, ascending
    class_order: np.ndarray | None = None
    is_query: np.ndarray | None = None  # (N,) bool; None: all
    is_gallery: np.ndarray | None = None  # (N,) bool; None: all
    # (N, H, W, 3) uint8 where the data set holds arrays, else None
    images: np.ndarray | None = None
    # class number -> name of its super class; None: there are none
    super_classes: dict[int, str] | None = None


def first_classes(classes: np.ndarray, count: int, split: str) -> np.ndarray:
    """Mask of the images of a split when the first `count` class numbers are for training."""
    return (classes < count) == (split == "train")


def choose_rows(table: Table, split: str, ranges: str | None) -> np.ndarray:
    """Numbers of the images of a split: of the chosen classes, or the data set's own split.

    Raises:
        ValueError: the ranges are malformed or leave no image.
    """
    if not table.paths:
        raise ValueError(f"no images in the {split} split")

    present = np.unique(table.classes)
    order = present if table.class_order is None else table.class_order
    if ranges is not None:
        chosen = order[parse_classes(ranges, len(order), f"--{split}_classes")]
        rows = np.flatnonzero(np.isin(table.classes, chosen))
    elif table.in_split is not None:
        rows = np.flatnonzero(table.in_split)
    else:
        rows = np.arange(len(table.paths))

    if len(rows) == 0:
        numbers = np.flatnonzero(np.isin(order, present)) + 1
        middle = len(numbers) // 2
        part = numbers[:middle] if split == "train" else numbers[middle:]
        example = f"{part[0]}-{part[-1]}" if len(part) else "1"
        raise ValueError(
            f"no images in the {split} split; the data has {len(numbers)} classes, numbers "
            f"{numbers[0]}-{numbers[-1]}: choose with --{split}_classes, e.g. {example}"
        )
    return rows


def parse_classes(ranges: str, num_classes: int, flag: str) -> np.ndarray:
    """Read "1-25" or "1-10,15" as zero-based positions, (n,) int64 ascending as written.

    Raises:
        ValueError: not of that form, zero, backwards, above num_classes, or a class twice.
    """
    shown = f"{flag}={ranges}"
    positions: list[int] = []
    for part in str(ranges).split(","):
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        if not (first.isdecimal() and (last.isdecimal() if dash else not last)):
            raise ValueError(f"{shown}: expected class ranges such as 1-25 or 1-10,15")

        start, end = int(first), int(last if dash else first)
        if start < 1:
            raise ValueError(f"{shown}: classes are counted from 1, found 0")
        if end < start:
            raise ValueError(f"{shown}: range {start}-{end} runs backwards; write {end}-{start}")
        if end > num_classes:
            raise ValueError(f"{shown}: no class {end}; there are classes 1-{num_classes}")
        positions.extend(range(start - 1, end))

    if len(set(positions)) < len(positions):
        raise ValueError(f"{shown}: ranges overlap; name each class once")
    return np.array(positions, dtype=np.int64)
