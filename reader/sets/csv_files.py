"""CSV files of images, as `python -m data.prepare` writes them, and the data set made of one."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np

from metric_learning.reader.sets.image_set import ImageError
from metric_learning.reader.sets.table import SPLITS, Table

NEEDED_COLUMNS = ("path", "label")

Row = dict[str, str]


@dataclass(frozen=True)
class ImageList:
    """The content of a CSV file of images; columns beside path and label are optional."""

    file: Path  # where it was read
    columns: tuple[str, ...]  # names of the columns
    rows: list[Row]  # N images, column -> text
    lines: list[int]  # N numbers of the first line of each row, from 1

    @property
    def labels(self) -> list[str]:
        """N class names."""
        return [row["label"] for row in self.rows]

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
        return ImageList(self.file, self.columns, rows, [self.lines[i] for i in numbers])


def natural(text: str) -> int:
    """Read a cell that holds an integer of at least 0; ValueError if it holds something else."""
    if not (text.isascii() and text.isdecimal() and len(text) <= 18):
        raise ValueError(f"expected an integer of at least 0, found {text!r}")
    return int(text)


def read_image_list(file: Path) -> ImageList:
    """Read a UTF-8 CSV file whose first line names the columns; blank lines are skipped.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file, lacks path or label, or holds no image; a broken line is
            named by its number.
    """
    if not file.is_file():
        raise FileNotFoundError(f"no file {file}")

    rows: list[Row] = []
    lines: list[int] = []
    with file.open(encoding="utf-8-sig", newline="") as opened:
        reader = csv.reader(opened, strict=True)
        try:
            columns = tuple(next(reader, []))
            _check_columns(file, columns)
            last = reader.line_num
            for cells in reader:
                line, last = last + 1, reader.line_num
                if cells:
                    rows.append(_read_row(file, line, columns, cells))
                    lines.append(line)
        except UnicodeDecodeError as error:
            raise ValueError(f"{file}: expected a UTF-8 CSV file") from error
        except csv.Error as error:
            raise ValueError(f"{file}:{reader.line_num}: expected CSV, found: {error}") from error

    if not rows:
        raise ValueError(f"{file}: expected images, found only the names of the columns")
    return ImageList(file, columns, rows, lines)


def _check_columns(file: Path, columns: Sequence[str]) -> None:
    shown = ",".join(columns)
    if not set(NEEDED_COLUMNS) <= set(columns):
        raise ValueError(
            f"{file}:1: expected the names of the columns, path and label among them, found "
            f"'{shown[:120]}'"
        )
    if len(set(columns)) < len(columns):
        raise ValueError(f"{file}:1: expected different columns, found '{shown[:120]}'")


def _read_row(file: Path, line: int, columns: Sequence[str], cells: Sequence[str]) -> Row:
    if len(cells) != len(columns):
        raise ValueError(
            f"{file}:{line}: expected {len(columns)} columns ({','.join(columns)}), found "
            f"{len(cells)}: '{','.join(cells)[:120]}'"
        )
    row = dict(zip(columns, cells, strict=True))
    for name in NEEDED_COLUMNS:
        if not row[name]:
            raise ValueError(f"{file}:{line}: expected a {name}, found an empty cell")
    return row


def read_csv(file: Path, data_dir: Path, split: str, fold: int | None) -> Table:
    """Read one split of a CSV file; classes are all labels of the file in sorted order.

    Its columns are path, relative to data_dir, label and split (train or test) or fold (a number or
    empty: in no fold). A given fold is the test split and the others are the train split; without
    one the column split decides.

    Raises:
        FileNotFoundError: there is no such file.
        ImageError: the first image of the split is not there.
        ValueError: a line is broken, or the file has no such split or fold.
    """
    images = read_image_list(file)
    names = sorted(set(images.labels))
    number_of = {name: number for number, name in enumerate(names)}
    in_split = _rows_of_split(images, split) if fold is None else _rows_of_fold(images, split, fold)
    chosen = images.select(in_split)
    paths = [os.path.join(data_dir, row["path"]) for row in chosen.rows]
    if paths and not os.path.isfile(paths[0]):
        raise ImageError(
            f"{file}:{chosen.lines[0]}: no image {paths[0]}: give the folder that the paths are "
            "relative to as --data_dir"
        )
    classes = np.array([number_of[label] for label in chosen.labels], dtype=np.int64)
    return Table(paths, classes, dict(enumerate(names)))


def _rows_of_split(images: ImageList, split: str) -> np.ndarray:
    if "split" not in images.columns:
        remedy = (
            "choose the fold to test on with --fold"
            if "fold" in images.columns
            else f"add it with 'python -m data.prepare split {images.file}', or folds"
        )
        raise ValueError(f"{images.file} has no column split: {remedy}")
    numbers = images.parse("split", SPLITS.index, "train or test")
    return np.flatnonzero(numbers == SPLITS.index(split))


def _rows_of_fold(images: ImageList, split: str, fold: int) -> np.ndarray:
    if "fold" not in images.columns:
        raise ValueError(
            f"{images.file} has no column fold, which --fold={fold} needs: add it with "
            f"'python -m data.prepare folds {images.file}'"
        )
    folds = images.parse("fold", lambda text: natural(text) if text else -1, "a number or nothing")
    present = np.unique(folds[folds >= 0])
    if fold not in present:
        raise ValueError(
            f"--fold={fold}: {images.file} has folds {', '.join(map(str, present)) or 'none'}"
        )
    return np.flatnonzero(folds == fold if split == "test" else (folds >= 0) & (folds != fold))
