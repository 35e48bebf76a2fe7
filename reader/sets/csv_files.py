"""CSV files of images, as `python -m data.prepare` writes them, and the data set made of one."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

import numpy as np

from metric_learning.common.names import from_line
from metric_learning.reader.sets.boxes import (
    BOX_COLUMNS,
    NOTHING,
    WHOLE,
    Box,
    parse_box,
    parse_corner_box,
)
from metric_learning.reader.sets.columns import NEEDED, OTHER_NAMES, delimiter_of, usual_names
from metric_learning.reader.sets.left_out import JUNK, NO_FOLD, NO_ROLE, LeftOut
from metric_learning.reader.sets.table import (
    ALL,
    SPLIT_NAMES,
    SPLITS,
    TEST,
    TRAIN,
    VAL,
    Table,
    sort_names,
    take,
)
from metric_learning.reader.sets.text import read_text, strip, unify_integers, unify_labels

QUERY, GALLERY = "query", "gallery"  # parts of a test split, as its column of splits may name them
SPLIT_WORDS = {word: split for split, words in SPLIT_NAMES.items() for word in words}
SPLIT_WORDS |= {QUERY: TEST, GALLERY: TEST}
ROLES = ("is_query", "is_gallery")
# Labels of images of no class: Market-1501's, and wildlife-datasets' in its own column.
JUNK_LABEL, UNKNOWN = "-1", "unknown"
TRUE_WORDS = ("true", "1", "yes")
FALSE_WORDS = ("false", "0", "no", "", "nan", "none")
CORNER_BOX = "bbox"  # of wildlife-datasets and COCO

Row = dict[str, str]


@dataclass(frozen=True)
class ImageList:
    """The content of a CSV file of images; columns beside path and label are optional."""

    file: Path  # where it was read
    columns: tuple[str, ...]  # names of the columns
    rows: list[Row]  # N images, column -> text, without spaces around it but in paths
    lines: list[int]  # N numbers of the first line of each row, from 1
    unified: Mapping[str, int] = field(default_factory=dict)  # what was read as the same -> times
    junk: tuple[str, ...] = ()  # FILE:LINE of rows that are of no class, which are not among them

    @property
    def labels(self) -> list[str]:
        """N class names."""
        return [row["label"] for row in self.rows]

    @property
    def places(self) -> list[str]:
        """N times FILE:LINE."""
        return [f"{self.file}:{line}" for line in self.lines]

    def parse(self, column: str, parse: Callable[[str], int], expected: str) -> np.ndarray:
        """Read a column as (N,) int64; `parse` reads a cell, or raises ValueError.

        Raises:
            ValueError: there is no such column, or a cell is not what is expected; names the line.
        """
        if column not in self.columns:
            raise ValueError(f"{self.file} has no column {column}")
        numbers = []
        for i, row in enumerate(self.rows):
            try:
                numbers.append(parse(row[column]))
            except ValueError:
                self.fail(i, f"expected {expected} as {column}, found {row[column]!r}")
        return np.array(numbers, dtype=np.int64)

    def fail(self, i: int, message: str) -> NoReturn:
        """Raise ValueError that names the line of row i."""
        raise ValueError(f"{self.file}:{self.lines[i]}: {message}")

    def select(self, chosen: Iterable[int]) -> ImageList:
        """The rows of these numbers."""
        numbers = [int(i) for i in chosen]
        rows = [self.rows[i] for i in numbers]
        return replace(self, rows=rows, lines=[self.lines[i] for i in numbers])


def natural(text: str) -> int:
    """Read a cell that holds an integer of at least 0; ValueError if it holds something else."""
    if not (text.isascii() and text.isdecimal() and len(text) <= 18):
        raise ValueError(f"expected an integer of at least 0, found {text!r}")
    return int(text)


def boolean(text: str) -> int:
    """Read a cell of yes or no as 1 or 0, nothing is no; ValueError if it holds something else."""
    word = unify_integers(text.lower())
    if word not in (*TRUE_WORDS, *FALSE_WORDS):
        raise ValueError(f"expected True or False, found {text!r}")
    return int(word in TRUE_WORDS)


def fold_number(text: str) -> int:
    """Read a cell of the column fold: a number, -1 for nothing; or ValueError."""
    return natural(unify_integers(text)) if text else -1


def split_number(text: str) -> int:
    """Read a cell of the column split as its place in SPLITS; or ValueError."""
    return SPLITS.index(SPLIT_WORDS.get(text.lower(), ""))


def read_image_list(file: Path, given: Mapping[str, str | None] | None = None) -> ImageList:
    """Read a UTF-8 CSV file whose first line names the columns; blank lines are skipped.

    Cells are divided by commas, or by semicolons or tabs where the first line is. `given` has the
    file's own names of columns, see `columns.usual_names`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file, lacks path or label, or holds no image; a broken line is
            named by its number.
    """
    if not file.is_file():
        raise FileNotFoundError(f"no file {file}")

    rows: list[Row] = []
    lines: list[int] = []
    text = read_text(file, "a UTF-8 CSV file")
    delimiter = delimiter_of(text, given or {})
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    try:
        theirs = tuple(strip(name) for name in next(reader, []))
        columns = usual_names(file, theirs, given or {})
        last = reader.line_num
        for cells in reader:
            line, last = last + 1, reader.line_num
            if cells:
                rows.append(_read_row(file, line, columns, cells))
                lines.append(line)
    except csv.Error as error:
        raise ValueError(f"{file}:{reader.line_num}: expected CSV, found: {error}") from error

    if not rows:
        raise ValueError(f"{file}: expected images, found only the names of the columns")
    labels, unified = unify_labels([row["label"] for row in rows])
    for row, label in zip(rows, labels, strict=True):
        row["label"] = label
    images = ImageList(file, columns, rows, lines, unified)
    return _without_junk(images, "label" not in theirs and OTHER_NAMES["label"] in theirs)


def _without_junk(images: ImageList, has_identities: bool) -> ImageList:
    """Leave out images of no class; a table of identities has unknown ones."""
    junk_labels = {JUNK_LABEL, *([UNKNOWN] if has_identities else [])}
    is_junk = [label in junk_labels for label in images.labels]
    if not any(is_junk):
        return images
    places = zip(images.places, is_junk, strict=True)
    kept = images.select(i for i, junk in enumerate(is_junk) if not junk)
    if not kept.rows:
        raise ValueError(f"{images.file}: expected images of classes, all have the label -1")
    return replace(kept, junk=tuple(place for place, junk in places if junk))


def read_cells(file: Path, columns: Sequence[str], what: str) -> list[Row]:
    """Read the rows of a CSV file of ours; ValueError where it is not `what`, with its columns."""
    text = read_text(file, what)
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        found = list(rows)
    except csv.Error as error:
        raise ValueError(f"{file}:{rows.line_num}: expected {what}, found: {error}") from error
    is_whole = all(None not in row and None not in row.values() for row in found)
    if not set(columns) <= set(rows.fieldnames or ()) or not is_whole:
        raise ValueError(f"{file}: expected {what}, with columns {','.join(columns)}")
    return found


def _read_row(file: Path, line: int, columns: Sequence[str], cells: Sequence[str]) -> Row:
    if len(cells) != len(columns):
        raise ValueError(
            f"{file}:{line}: expected {len(columns)} columns ({','.join(columns)}), found "
            f"{len(cells)}: '{','.join(cells)[:120]}'"
        )
    row = {
        name: from_line(cell) if name in NEEDED else strip(cell)
        for name, cell in zip(columns, cells, strict=True)
    }
    for name in NEEDED:
        if not strip(row[name]):
            raise ValueError(f"{file}:{line}: expected a {name}, found an empty cell")
    return row


def read_csv(
    file: Path,
    data_dir: Path,
    split: str,
    fold: int | None,
    given: Mapping[str, str | None] | None = None,
) -> Table:
    """Read one split of a CSV file; classes are all labels of the file, see `sort_names`.

    Its columns are path, relative to data_dir, label and split (train, val, test, or query and
    gallery for the two parts of a test), fold (a number or empty: in no fold) or is_query and
    is_gallery (True or False). A given fold is the test split and the others are the train split;
    without one the column split decides, and without that the roles: what has none is for training.
    Where nothing is for the test, val is. Images may have a group, see `retrieval.groups`, and a
    box. Those of the label -1 are in no split. `given` is as of `read_image_list`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is broken, or the file has no such split or fold.
    """
    images = read_image_list(file, given)
    names = sort_names(images.labels)
    number_of = {name: number for number, name in enumerate(names)}
    roles = _read_roles(images)
    whole = Table(
        [os.path.join(data_dir, row["path"]) for row in images.rows],
        np.array([number_of[label] for label in images.labels], dtype=np.int64),
        dict(enumerate(names)),
        is_query=roles and roles[0],
        is_gallery=roles and roles[1],
        places=images.places,
        boxes=_read_boxes(images),
        groups=_read_groups(images),
        left_out=LeftOut(str(file), {JUNK: list(images.junk)}),
        unified=images.unified,
    )
    if split == ALL:
        return whole

    split_of = _read_splits(images, fold)
    notes: tuple[str, ...] = ()
    if split == TEST and fold is None and TEST not in split_of and VAL in split_of:
        split, notes = VAL, (f"val is the test split: {file} has no test",)
    return _take_split(whole, split, split_of, file, notes)


def _take_split(
    whole: Table, split: str, split_of: np.ndarray, file: Path, notes: tuple[str, ...]
) -> Table:
    """Take a split, and account for rows that no split has use for."""
    is_chosen, places = split_of == split, whole.places or []
    items = {**whole.left_out.items, NO_FOLD: [places[i] for i in np.flatnonzero(split_of == "")]}
    if split == TRAIN:
        whole = replace(whole, is_query=None, is_gallery=None)
    elif whole.is_query is not None and whole.is_gallery is not None:
        is_useless = is_chosen & ~whole.is_query & ~whole.is_gallery
        items[NO_ROLE] = [places[i] for i in np.flatnonzero(is_useless)]
        is_chosen &= ~is_useless
    chosen = take(whole, np.flatnonzero(is_chosen))
    return replace(chosen, left_out=LeftOut(str(file), items), notes=notes)


def splits_of_csv(
    file: Path, fold: int | None, given: Mapping[str, str | None] | None = None
) -> tuple[str, ...]:
    """Return which splits a CSV file has; ValueError where it says nothing of any."""
    found = set(_read_splits(read_image_list(file, given), fold).tolist())
    if TEST not in found and VAL in found:
        found = {TEST} | found - {VAL}
    return tuple(split for split in SPLITS if split in found)


def _read_splits(images: ImageList, fold: int | None) -> np.ndarray:
    """Return the split of each row, (N,) of str; "" is in no fold."""
    if fold is not None:
        return _splits_of_fold(images, fold)
    if "split" in images.columns:
        return np.array(SPLITS)[
            images.parse("split", split_number, "train, val, test, query or gallery")
        ]
    roles = _read_roles(images)
    if roles is not None and "fold" not in images.columns:
        return np.where(roles[0] | roles[1], TEST, TRAIN)

    remedy = f"add it with 'python -m data.prepare split {images.file}', or folds"
    if "fold" in images.columns:
        found = np.unique(images.parse("fold", fold_number, "a number or nothing"))
        numbers = ", ".join(str(number) for number in found if number >= 0)
        remedy = f"choose the fold to test on with --fold=NUMBER ({numbers})"
    raise ValueError(f"{images.file} has no column split: {remedy}")


def _splits_of_fold(images: ImageList, fold: int) -> np.ndarray:
    if "fold" not in images.columns:
        raise ValueError(
            f"{images.file} has no column fold, which --fold={fold} needs: add it with "
            f"'python -m data.prepare folds {images.file}'"
        )
    folds = images.parse("fold", fold_number, "a number or nothing")
    present = np.unique(folds[folds >= 0])
    if fold not in present:
        raise ValueError(
            f"--fold={fold}: {images.file} has folds {', '.join(map(str, present)) or 'none'}"
        )
    return np.where(folds < 0, "", np.where(folds == fold, TEST, TRAIN))


def _read_roles(images: ImageList) -> tuple[np.ndarray, np.ndarray] | None:
    """Return which rows are queries and which are in the gallery, (N,) bool; None: nothing said."""
    words = np.array([row.get("split", "").lower() for row in images.rows])
    roles = words == QUERY, words == GALLERY
    if any(role.any() for role in roles):
        _check_roles(images, words, roles)
        return ~roles[1], ~roles[0]
    if not set(ROLES) & set(images.columns):
        return None
    is_query, is_gallery = (
        images.parse(name, boolean, "True or False").astype(bool)
        if name in images.columns
        else np.ones(len(images.rows), dtype=bool)
        for name in ROLES
    )
    return is_query, is_gallery


def _check_roles(
    images: ImageList, words: np.ndarray, roles: tuple[np.ndarray, np.ndarray]
) -> None:
    """Raise ValueError where a column of splits names queries or a gallery, and contradicts it."""
    if not (roles[0].any() and roles[1].any()):
        found, lacking = (QUERY, GALLERY) if roles[0].any() else (GALLERY, QUERY)
        raise ValueError(
            f"{images.file} has a split {found} and none {lacking}: a test needs both, or the "
            "split test, in which every image searches all others"
        )
    is_test = np.array([SPLIT_WORDS.get(word) == TEST for word in words.tolist()])
    mixed = np.flatnonzero(is_test & ~roles[0] & ~roles[1])
    if len(mixed):
        images.fail(int(mixed[0]), "expected a split of query or gallery as elsewhere, found test")

    others = sorted(set(ROLES) & set(images.columns))
    if others:
        raise ValueError(
            f"{images.file} tells queries from the gallery twice, by the column split and by "
            f"{' and '.join(others)}: leave one of them out"
        )


def _read_groups(images: ImageList) -> np.ndarray | None:
    """Return the number of each row's group, (N,) int64, -1 for an empty cell; None: no column."""
    if "group" not in images.columns:
        return None
    names = [unify_integers(row["group"]) for row in images.rows]
    names = ["" if name.lower() in NOTHING else name for name in names]
    number_of = {name: number for number, name in enumerate(sort_names(filter(None, names)))}
    return np.array([number_of.get(name, -1) for name in names], dtype=np.int64)


def _read_boxes(images: ImageList) -> list[Box] | None:
    """Return the part of its photo that each row is; None: no row is a part."""
    boxes = [WHOLE] * len(images.rows)
    for i, row in enumerate(images.rows):
        try:
            if set(BOX_COLUMNS) <= set(images.columns):
                boxes[i] = parse_box([row[name] for name in BOX_COLUMNS])
            elif CORNER_BOX in images.columns:
                boxes[i] = parse_corner_box(row[CORNER_BOX])
        except ValueError as error:
            images.fail(i, str(error))
    return boxes if any(box != WHOLE for box in boxes) else None
