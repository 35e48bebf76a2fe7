"""Paths of images from lists: standard input, CSV files, tar archives; millions of them, packed."""

from __future__ import annotations

import csv
import os
import shutil
import sys
import tempfile
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from metric_learning.common.archives import iterate_members
from metric_learning.common.names import from_line
from metric_learning.common.packed_lines import open_lines, spool_lines
from metric_learning.common.text_files import check_regular
from metric_learning.reader.sets.boxes import BOX_COLUMNS, parse_box
from metric_learning.reader.sets.columns import OTHER_NAMES
from metric_learning.reader.sets.left_out import NUM_SUFFIXES
from metric_learning.reader.sets.text import strip
from metric_learning.reader.sets.walk import is_image_name

PATH, LABEL, NO_CLASS = "path", "label", "-1"


def read_text_list(file: Path) -> Sequence[str]:
    """Map a text file of a path a line; ValueError where there is none."""
    return _some(open_lines(file, str(file)), str(file))


def read_standard_input() -> Sequence[str]:
    """Copy standard input, a path a line, to a file without a name, and map its lines."""
    with tempfile.NamedTemporaryFile(prefix="paths-", suffix=".txt") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
        file.flush()
        return _some(open_lines(Path(file.name), "standard input"), "standard input")


def read_paths_of_csv(file: Path) -> tuple[Sequence[str], np.ndarray | None]:
    """Read the column `path` of a CSV file, and boxes (N, 4) int32 where it has their columns.

    Relative paths start at the folder of the file. Raises ValueError, which names the line, where
    it holds something else.
    """
    check_regular(file, str(file))
    boxes = array("i")
    with file.open(encoding="utf-8-sig", newline="", errors="surrogateescape") as opened:
        rows = csv.DictReader(opened, strict=True)
        try:
            has_boxes = _check_columns(rows.fieldnames or ())
            paths = spool_lines(_paths_of_rows(rows, file, boxes if has_boxes else None), str(file))
        except (csv.Error, ValueError) as error:
            is_ours = isinstance(error, ValueError)
            said = error if is_ours else f"expected CSV, found: {error}"
            raise ValueError(f"{file}:{max(1, rows.line_num)}: {said}") from error
    found = np.array(boxes, np.int32).reshape(-1, len(BOX_COLUMNS)) if has_boxes else None
    return _some(paths, str(file)), found


def read_classes_of_csv(file: Path) -> list[str | None] | None:
    """Read the column `label` of a CSV file of paths, or `identity`; None where it has neither.

    An empty cell is None. The rows are those of `read_paths_of_csv`, which has checked the file.
    Raises ValueError, which names the line, for a label of -1, that of images of no class.
    """
    with file.open(encoding="utf-8-sig", newline="", errors="surrogateescape") as opened:
        rows = csv.DictReader(opened, strict=True)
        columns = rows.fieldnames or ()
        column = next((name for name in (LABEL, OTHER_NAMES[LABEL]) if name in columns), None)
        if column is None:
            return None

        classes = []
        for row in rows:
            name = strip(from_line(row[column]))
            if name == NO_CLASS:
                raise ValueError(
                    f"{file}:{rows.line_num}: expected a class as {column}, found {NO_CLASS}, "
                    "which is none: leave the row out"
                )
            classes.append(name or None)
    return classes


def _check_columns(columns: Sequence[str]) -> bool:
    """Return whether there are columns of boxes; ValueError where there is no path."""
    if PATH not in columns:
        raise ValueError(f"expected a column {PATH}, found {', '.join(columns) or 'nothing'}")
    found = [name for name in BOX_COLUMNS if name in columns]
    if found and len(found) < len(BOX_COLUMNS):
        raise ValueError(
            f"expected all columns {','.join(BOX_COLUMNS)} of boxes, found {','.join(found)}"
        )
    return bool(found)


def _paths_of_rows(
    rows: csv.DictReader[str], file: Path, boxes: array[int] | None
) -> Iterator[str]:
    """Yield the path of each row, and add its box to the boxes."""
    for row in rows:
        if None in row or None in row.values():
            raise ValueError(f"expected {len(rows.fieldnames or ())} cells, as the first line has")
        if not row[PATH].strip():
            raise ValueError(f"expected a {PATH}, found an empty cell")
        if boxes is not None:
            boxes.extend(parse_box([row[name] for name in BOX_COLUMNS]))
        yield os.path.join(file.parent, from_line(row[PATH]))


def read_archives(archives: Sequence[str]) -> tuple[Sequence[str], tuple[str, ...]]:
    """List the images in tar archives, in their order, and say what else is in them.

    That is the layout of WebDataset, of whose samples the images are taken alone; hidden files are
    left out. https://github.com/webdataset/webdataset
    """
    others: Counter[str] = Counter()

    def paths() -> Iterator[str]:
        for archive in archives:
            seen = set()  # of several files of one name the last one counts, see `find_member`
            for name, _ in iterate_members(archive):
                if not is_image_name(name) or os.path.basename(name).startswith("."):
                    others[os.path.splitext(name)[1].lower() or "without suffix"] += 1
                elif name not in seen:
                    seen.add(name)
                    yield os.path.join(archive, name)

    what = archives[0] if len(archives) == 1 else f"{archives[0]} and {len(archives) - 1} more"
    found = _some(spool_lines(paths(), what), what, "images")
    counts = ", ".join(f"{suffix} {count:,}" for suffix, count in others.most_common(NUM_SUFFIXES))
    count = sum(others.values())
    return found, (f"left out of {what}: {count:,} other files ({counts})",) if others else ()


def _some(
    paths: Sequence[str], what: str, expected: str = "paths of images, one a line"
) -> Sequence[str]:
    """Return paths; ValueError where there is none."""
    if not len(paths):
        raise ValueError(f"{what}: expected {expected}, found none")
    return paths
