"""What the readers of data sets return, and the choice of classes in it."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from metric_learning.reader.sets.boxes import WHOLE, Box
from metric_learning.reader.sets.left_out import LeftOut, join_left_out

TRAIN, VAL, TEST, ALL = "train", "val", "test", "all"
SPLITS = (TRAIN, VAL, TEST)
# What folders and cells of the splits are called, in any case; of folders, the first that holds
# classes is taken.
SPLIT_NAMES = {
    TRAIN: ("train", "training"),
    TEST: ("test", "testing"),
    VAL: ("val", "valid", "validation"),
}
NUM_RANGES = 4  # of class numbers that a line shows

Item = TypeVar("Item")


@dataclass(frozen=True, eq=False)
class Table:
    """Images that may be chosen for a split, before classes are chosen."""

    paths: list[str]  # N file paths, or names of images held in memory
    classes: np.ndarray  # (N,) int64 class numbers of the data set, ascending in class order
    class_names: dict[int, str]  # class number -> name
    # (N,) bool, the images of the split when no classes are chosen; None: all
    in_split: np.ndarray | None = None
    # where "1", "2", ... choose the class numbers 0, 1, ..., present or not: how many there are;
    # None: they choose those present, ascending
    num_classes: int | None = None
    is_query: np.ndarray | None = None  # (N,) bool; None: all
    is_gallery: np.ndarray | None = None  # (N,) bool; None: all
    # (N, H, W, 3) uint8 where the data set holds arrays, else None
    images: np.ndarray | None = None
    # class number -> name of its super class; None: there are none
    super_classes: dict[int, str] | None = None
    # N times FILE:LINE where a list names the images; None: they were found in folders
    places: list[str] | None = None
    boxes: list[Box] | None = None  # N parts of the images; None: whole images
    # (N,) int64, -1: none; see `retrieval.groups`; None: there are none
    groups: np.ndarray | None = None
    left_out: LeftOut = LeftOut()
    unified: Mapping[str, int] = field(default_factory=dict)  # what was read as the same -> times
    notes: tuple[str, ...] = ()  # lines for the log


def sort_names(names: Iterable[str]) -> list[str]:
    """Bring class names into order, each once: numbers by their value, then texts.

    Names with / are ordered by the first part that differs.
    """
    return sorted(set(names), key=lambda name: [_part_key(part) for part in name.split("/")])


def _part_key(part: str) -> tuple[bool, int, str]:
    is_number = part.isascii() and part.isdecimal() and len(part) <= 18
    return not is_number, int(part) if is_number else 0, part


def first_classes(classes: np.ndarray, count: int, split: str) -> np.ndarray:
    """Mask of the images of a split when the first `count` class numbers are for training."""
    return (classes < count) == (split == TRAIN)


def choose_rows(table: Table, split: str, ranges: str | None) -> tuple[np.ndarray, tuple[str, ...]]:
    """Choose the images of a split: of the chosen classes, or the data set's own split.

    Returns:
        Numbers of the images, (n,) int64, and a line on the classes unless they are all there are.

    Raises:
        ValueError: the ranges are malformed or leave no image.
    """
    if not table.paths:
        raise ValueError(f"no images in the {split} split")

    present = np.unique(table.classes)
    is_official = table.num_classes is not None
    numbers = table.classes if is_official else np.searchsorted(present, table.classes)
    num_classes = table.num_classes if is_official else len(present)
    assert num_classes is not None
    if ranges is not None:
        rows = np.flatnonzero(
            parse_classes(ranges, num_classes, f"--{split}_classes").hold(numbers)
        )
    elif table.in_split is not None:
        rows = np.flatnonzero(table.in_split)
    else:
        rows = np.arange(len(table.paths))

    if len(rows) == 0:
        raise ValueError(_no_images(split, np.unique(numbers) + 1))
    chosen = np.unique(numbers[rows])
    if ranges is None and len(chosen) == len(present):
        return rows, ()
    first, last = rows[numbers[rows].argmin()], rows[numbers[rows].argmax()]
    names = [table.class_names[int(table.classes[row])] for row in (first, last)]
    shown = names[0] if len(chosen) == 1 else f"{names[0]} to {names[1]}"
    return rows, (f"classes {format_ranges(chosen + 1)} of {num_classes}: {shown}",)


def _no_images(split: str, numbers: np.ndarray) -> str:
    """Say that the chosen classes have no images, and which of them (n,) have some, from 1."""
    middle = len(numbers) // 2
    part = numbers[:middle] if split == TRAIN else numbers[middle:]
    example = f"{part[0]}-{part[-1]}" if len(part) else "1"
    return (
        f"no images in the {split} split; the data has {len(numbers)} classes, numbers "
        f"{numbers[0]}-{numbers[-1]}: choose with --{split}_classes, e.g. {example}"
    )


def format_ranges(numbers: np.ndarray) -> str:
    """Write distinct ascending numbers as ranges, the first ones: "1-25,30"."""
    pieces = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    shown = [
        f"{piece[0]}" if len(piece) == 1 else f"{piece[0]}-{piece[-1]}"
        for piece in pieces[:NUM_RANGES]
    ]
    return ",".join(shown) + (",…" if len(pieces) > NUM_RANGES else "")


@dataclass(frozen=True)
class ClassRanges:
    """Ranges of class numbers from 0, first and last of each included."""

    ranges: tuple[tuple[int, int], ...]

    def hold(self, numbers: np.ndarray) -> np.ndarray:
        """Whether each number (N,) int64 lies in one of the ranges, (N,) bool."""
        inside = [(first <= numbers) & (numbers <= last) for first, last in self.ranges]
        return np.logical_or.reduce(inside)


def parse_classes(ranges: str, num_classes: int, flag: str) -> ClassRanges:
    """Read "1-25" or "1-10,15", which count from 1.

    Raises:
        ValueError: not of that form, zero, backwards, above num_classes, or a class twice.
    """
    shown = f"{flag}={ranges}"
    found: list[tuple[int, int]] = []
    for part in str(ranges).split(","):
        match = re.fullmatch(r"\s*([0-9]{1,18})\s*(?:-\s*([0-9]{1,18})\s*)?", part)
        if not match:
            raise ValueError(f"{shown}: expected class ranges such as 1-25 or 1-10,15")

        start, end = int(match[1]), int(match[2] or match[1])
        if start < 1:
            raise ValueError(f"{shown}: classes are counted from 1, found 0")
        if end < start:
            raise ValueError(f"{shown}: range {start}-{end} runs backwards; write {end}-{start}")
        if end > num_classes:
            raise ValueError(f"{shown}: no class {end}; there are classes 1-{num_classes}")
        found.append((start - 1, end - 1))

    found.sort()
    if any(last >= first for (_, last), (first, _) in zip(found, found[1:], strict=False)):
        raise ValueError(f"{shown}: ranges overlap; name each class once")
    return ClassRanges(tuple(found))


def take(table: Table, rows: np.ndarray) -> Table:
    """Return a table of some images, in_split and num_classes apart."""
    numbers = rows.tolist()
    is_whole = len(rows) == len(table.paths)
    images = table.images

    return replace(
        table,
        paths=table.paths if is_whole else [table.paths[i] for i in numbers],
        classes=table.classes[rows],
        in_split=None,
        num_classes=None,
        is_query=None if table.is_query is None else table.is_query[rows],
        is_gallery=None if table.is_gallery is None else table.is_gallery[rows],
        images=images if images is None or is_whole else images[rows],
        places=None if table.places is None else [table.places[i] for i in numbers],
        boxes=None if table.boxes is None else [table.boxes[i] for i in numbers],
        groups=None if table.groups is None else table.groups[rows],
    )


def image_keys(table: Table) -> list[tuple[str, Box]]:
    """What makes each of N images one: its path, and which part of it is meant."""
    boxes = table.boxes or [WHOLE] * len(table.paths)
    return list(zip(map(os.path.normpath, table.paths), boxes, strict=True))


def join_tables(tables: list[Table]) -> Table:
    """Put the images of several splits together; what an earlier one holds is not taken again.

    Class numbers are the data set's own in all of them.
    """
    seen: set[tuple[str, Box]] = set()
    parts = []
    for table in tables:
        keys = image_keys(table)
        new = [i for i, key in enumerate(keys) if key not in seen]
        parts.append(take(table, np.array(new, dtype=np.int64)))
        seen.update(keys)

    images = [part.images for part in parts if part.images is not None]
    supers = {k: name for part in parts for k, name in (part.super_classes or {}).items()}
    unified: Counter[str] = Counter()
    for part in parts:
        unified.update(part.unified)
    return Table(
        paths=[path for part in parts for path in part.paths],
        classes=np.concatenate([part.classes for part in parts]),
        class_names={k: name for part in parts for k, name in part.class_names.items()},
        is_query=np.concatenate([_mask(part.is_query, part) for part in parts]),
        is_gallery=np.concatenate([_mask(part.is_gallery, part) for part in parts]),
        images=np.concatenate(images) if images else None,
        super_classes=supers or None,
        places=_chain([part.places for part in parts]),
        boxes=_chain([part.boxes for part in parts]),
        groups=_join_groups(parts),
        left_out=join_left_out([part.left_out for part in parts]),
        unified=unified,
        notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)),
    )


def _join_groups(parts: Sequence[Table]) -> np.ndarray | None:
    """Put the groups together, which have one numbering; None where a table has none."""
    found = [part.groups for part in parts if part.groups is not None]
    return np.concatenate(found) if len(found) == len(parts) else None


def _mask(mask: np.ndarray | None, table: Table) -> np.ndarray:
    return np.ones(len(table.paths), dtype=bool) if mask is None else mask


def _chain(lists: Sequence[list[Item] | None]) -> list[Item] | None:
    """Put lists together; None where one is not there."""
    whole = [found for found in lists if found is not None]
    return [item for found in whole for item in found] if len(whole) == len(lists) else None
