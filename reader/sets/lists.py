"""Data sets described by list files: Stanford Online Products' layout, In-Shop and `path label`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from metric_learning.reader.sets.table import Table, sort_names
from metric_learning.reader.sets.text import NUMBER, read_text, strip, unify_integers, unify_labels
from metric_learning.reader.sets.walk import is_image_name

SOP_COLUMNS = "image_id class_id super_class_id path"
LIST_COLUMNS = "path label"
INSHOP_COLUMNS = "image_name item_id evaluation_status"
INSHOP_STATUSES = ("train", "query", "gallery")


def read_columns(
    path: Path,
    expected: str,
    *,
    from_right: bool = False,
    is_header: Callable[[int, str], bool] | None = None,
) -> list[tuple[int, list[str]]]:
    """Cut the lines of a UTF-8 list file at whitespace into the columns that `expected` names.

    The first column (from_right) or the last one may hold spaces. Blank lines are skipped, and
    lines for which is_header(line number, line) holds.

    Returns:
        (line number from 1, columns) of each line.

    Raises:
        ValueError: a line has too few columns, or the file is not UTF-8 text.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    text = read_text(path, f"a UTF-8 text file of lines '{expected}'", holds_names=True)
    cuts = len(expected.split()) - 1
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        line = strip(line)
        if not line or (is_header is not None and is_header(number, line)):
            continue
        columns = line.rsplit(maxsplit=cuts) if from_right else line.split(maxsplit=cuts)
        if len(columns) <= cuts:
            raise bad_line(path, number, expected, line)
        rows.append((number, columns))
    return rows


def bad_line(path: Path, number: int, expected: str, found: str) -> ValueError:
    """Build the error for a line that is not as expected."""
    shown = found if len(found) <= 120 else found[:117] + "..."
    return ValueError(f"{path}:{number}: expected '{expected}', found '{shown}'")


def parse_label(text: str) -> int:
    """Read a label; -1 when it is not an integer from 0 to 10^18."""
    return int(text) if text.isdecimal() and len(text) <= 18 else -1


def read_sop(data_dir: Path, split: str) -> Table:
    """Read Ebay_train.txt or Ebay_test.txt; class numbers are the class ids of the file.

    A super class is named by its folder (bicycle_final) if it has one of its own, else by its id.
    """
    path = data_dir / f"Ebay_{split}.txt"

    def is_header(number: int, line: str) -> bool:
        return number == 1 and not any(column.isdecimal() for column in line.split()[:3])

    paths, ids, places = [], [], []
    super_ids: dict[int, str] = {}
    folders: dict[str, set[str]] = {}  # of each super class
    for number, columns in read_columns(path, SOP_COLUMNS, is_header=is_header):
        class_id = parse_label(columns[1])
        if class_id < 0:
            class_id = parse_label(unify_integers(columns[1]))
        if class_id < 0:
            raise bad_line(path, number, SOP_COLUMNS, " ".join(columns))
        paths.append(os.path.join(data_dir, columns[3]))
        ids.append(class_id)
        places.append(f"{path}:{number}")
        super_ids[class_id] = columns[2]
        folders.setdefault(columns[2], set()).add(columns[3].rpartition("/")[0])

    names = {
        super_id: found.pop().removesuffix("_final")
        if len(found) == 1 and "" not in found
        else super_id
        for super_id, found in folders.items()
    }
    classes = np.array(ids, dtype=np.int64)
    return Table(
        paths,
        classes,
        {int(c): str(c) for c in np.unique(classes)},
        super_classes={class_id: names[super_id] for class_id, super_id in super_ids.items()},
        places=places,
    )


@dataclass(frozen=True)
class LabelList:
    """The content of a file of `path label` lines."""

    file: Path
    paths: list[str]  # N as they are written
    labels: list[str]  # N, see `unify_labels`
    lines: list[int]  # N line numbers from 1
    unified: Mapping[str, int]  # what was read as the same -> times

    @property
    def has_numbers(self) -> bool:
        """Whether labels are the numbers of the classes, and not their names."""
        return not self.labels or parse_label(self.labels[0]) >= 0


def read_label_list(file: Path) -> LabelList:
    """Read a file of `path label` lines, whose labels are all numbers or all names; or ValueError.

    A path may hold spaces, a label may not.
    """
    rows = read_columns(file, LIST_COLUMNS, from_right=True)
    labels, unified = unify_labels([columns[1] for _, columns in rows])
    paths = [columns[0] for _, columns in rows]
    found = LabelList(file, paths, labels, [number for number, _ in rows], unified)

    for path, label, number in zip(paths, labels, found.lines, strict=True):
        what = f"found '{path} {label}'"
        if is_image_name(label) and not is_image_name(path):
            raise ValueError(f"{file}:{number}: expected 'path label', {what}: no label behind it")
        is_number = parse_label(label) >= 0
        if not is_number and NUMBER.fullmatch(label):
            raise ValueError(
                f"{file}:{number}: expected as a label a number from 0 or a name, {what}"
            )
        if is_number != found.has_numbers:
            kind = "a number" if found.has_numbers else "a name"
            raise ValueError(
                f"{file}:{number}: expected {kind} as a label, as in line {found.lines[0]}, {what}"
            )
    return found


def read_list(file: Path, data_dir: Path, others: Sequence[Path] = ()) -> Table:
    """Read a file of `path label` lines; paths are relative to data_dir.

    Numbers are the numbers of the classes. Names are numbered in order among those of this list and
    of the `others` that are there, so that a class is the same one in all of them.
    """
    found = read_label_list(file)
    names = {label: int(label) for label in set(found.labels)} if found.has_numbers else {}
    if not found.has_numbers:
        lists = [read_label_list(other) for other in others if other.is_file()]
        known = sort_names(label for each in (found, *lists) for label in each.labels)
        names = {name: number for number, name in enumerate(known)}

    classes = np.array([names[label] for label in found.labels], dtype=np.int64)
    named = {number: str(number) if found.has_numbers else name for name, number in names.items()}
    return Table(
        [os.path.join(data_dir, path) for path in found.paths],
        classes,
        named,
        places=[f"{file}:{line}" for line in found.lines],
        unified=found.unified,
    )


def read_inshop(data_dir: Path, split: str) -> Table:
    """Read In-Shop's list_eval_partition.txt; classes are all items in sorted order.

    The super class of an item is its category, such as WOMEN/Dresses: the folders between img/ and
    its own one.
    """
    path = data_dir / "list_eval_partition.txt"
    if not path.is_file() and (data_dir / "Eval" / path.name).is_file():
        path = data_dir / "Eval" / path.name
    image_dir = data_dir / "Img" if (data_dir / "Img" / "img").is_dir() else data_dir

    def is_header(number: int, line: str) -> bool:
        return number <= 2 and line.split()[-1] not in INSHOP_STATUSES

    rows = read_columns(path, INSHOP_COLUMNS, from_right=True, is_header=is_header)
    items = sort_names(columns[1] for _, columns in rows)
    number_of = {item: number for number, item in enumerate(items)}
    paths, classes, statuses, places = [], [], [], []
    categories: dict[int, str] = {}
    for number, (name, item, status) in rows:
        if status not in INSHOP_STATUSES:
            raise bad_line(path, number, INSHOP_COLUMNS, f"{name} {item} {status}")
        if (status == "train") == (split == "train"):
            paths.append(os.path.join(image_dir, name))
            classes.append(number_of[item])
            statuses.append(status)
            places.append(f"{path}:{number}")
        categories.setdefault(number_of[item], "/".join(Path(name).parts[1:-2]))

    is_query = np.array([status != "gallery" for status in statuses], dtype=bool)
    is_gallery = np.array([status != "query" for status in statuses], dtype=bool)
    return Table(
        paths,
        np.array(classes, dtype=np.int64),
        dict(enumerate(items)),
        is_query=is_query,
        is_gallery=is_gallery,
        places=places,
        super_classes=categories if all(categories.values()) else None,
    )
