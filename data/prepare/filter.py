"""Chooses which images of a list to remove: broken ones, wrong sizes, near duplicates."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from metric_learning.common.names import from_line
from metric_learning.data.prepare.hashes import find_near_duplicates
from metric_learning.data.prepare.scan import read_hashes
from metric_learning.reader.sets.boxes import BOX_COLUMNS
from metric_learning.reader.sets.csv_files import ImageList, Row, boolean, natural, read_cells

BROKEN = "broken"
TOO_SMALL = "too small"
TOO_LARGE = "too large"
DUPLICATE = "duplicate"
OTHER_CLASS = "duplicate in another class"
LISTED = "listed as a near duplicate"
REASONS = (BROKEN, TOO_SMALL, TOO_LARGE, LISTED, DUPLICATE, OTHER_CLASS)
LIST_COLUMNS = ("path", "kept", "cosine", "is_kept")  # of retrieval.duplicates
REPORT_COLUMNS = ("path", "label", "reason", "detail", "kept", "kept_label", "distance")


class Removal(NamedTuple):
    """One image to remove, for one of REASONS; `detail` is what is broken, or the size.

    A duplicate is `distance` bits from the image of the number `kept`.
    """

    row: int
    reason: str
    detail: str = ""
    kept: int | None = None
    distance: int | None = None


def choose_removals(
    images: ImageList,
    min_size: int,
    max_size: int,
    threshold: int | None,
    listed: list[Removal],
) -> list[Removal]:
    """Choose the images to remove, in the order of REASONS; ValueError where a cell is wrong.

    Args:
        images: with columns width, height, hash and broken.
        min_size: shortest allowed short side in pixels; 0: any.
        max_size: longest allowed long side in pixels; 0: any.
        threshold: bits by which the hashes of duplicates differ at most; None: keep duplicates.
        listed: those of `read_duplicates`.
    """
    if BROKEN not in images.columns:
        raise ValueError(f"{images.file} has no column {BROKEN}: expected a file that scan wrote")
    removals = [Removal(i, BROKEN, row[BROKEN]) for i, row in enumerate(images.rows) if row[BROKEN]]

    whole = np.array([i for i, row in enumerate(images.rows) if not row[BROKEN]], dtype=np.int64)
    readable = images.select(whole)
    sides = np.stack(
        [readable.parse(name, natural, "pixels") for name in ("width", "height")], axis=1
    )  # Nx2

    is_small = sides.min(1, initial=2**62) < min_size
    is_large = (sides.max(1, initial=0) > max_size) & (max_size > 0)
    for reason, is_wrong in ((TOO_SMALL, is_small), (TOO_LARGE, is_large & ~is_small)):
        removals += [
            Removal(int(whole[i]), reason, "{} x {}".format(*sides[i]))
            for i in np.flatnonzero(is_wrong)
        ]

    gone = {removal.row for removal in removals}
    removals += [removal for removal in listed if removal.row not in gone]
    if threshold is not None:
        is_listed = np.isin(whole, [removal.row for removal in listed])
        left = np.flatnonzero(~is_small & ~is_large & ~is_listed)
        removals += _duplicates(images, whole[left], sides[left].prod(1), threshold)
    return sorted(removals, key=lambda removal: REASONS.index(removal.reason))


def read_duplicates(file: Path, images: ImageList, folder: Path) -> list[Removal]:
    """Return the images that a list of retrieval.duplicates does not keep.

    Those of `images` lie in a folder. Raises ValueError where the list is another one, or names
    none of the images.
    """
    found = read_cells(file, LIST_COLUMNS, "a list of 'python -m retrieval.duplicates'")
    has_boxes = set(BOX_COLUMNS) <= set(images.columns)
    keys = BOX_COLUMNS if has_boxes else ()
    places: dict[tuple[str, ...], list[int]] = {}
    for i, row in enumerate(images.rows):
        place = os.path.abspath(os.path.join(folder, row["path"]))
        places.setdefault((place, *(row[name] for name in keys)), []).append(i)

    removals, num_known = [], 0
    for cells in found:
        box = [cells.get(name, "") for name in keys]
        rows = places.get((os.path.abspath(from_line(cells["path"])), *box), [])
        num_known += bool(rows)
        if not boolean(cells["is_kept"]):
            detail = f"cosine {cells['cosine']} to {from_line(cells['kept'])}"
            removals += [Removal(row, LISTED, detail) for row in rows]
    if found and not num_known:
        raise ValueError(
            f"--duplicates={file}: none of its {len(found)} images is in {images.file}: give the "
            "folder of the images as --data_dir, and run it where infer.py ran"
        )
    return removals


def _duplicates(
    images: ImageList, rows: np.ndarray, areas: np.ndarray, threshold: int
) -> list[Removal]:
    """Near duplicates among some rows; of each group the largest image stays, then the first."""
    rows = rows[np.argsort(-areas, kind="stable")]
    keepers, distances = find_near_duplicates(read_hashes(images.select(rows)), threshold)
    removals = []
    for i in np.flatnonzero(keepers != np.arange(len(rows))):
        row, kept = int(rows[i]), int(rows[keepers[i]])
        is_same = images.rows[row]["label"] == images.rows[kept]["label"]
        reason = DUPLICATE if is_same else OTHER_CLASS
        removals.append(Removal(row, reason, "", kept, int(distances[i])))
    return sorted(removals)


def report_rows(images: ImageList, removals: list[Removal]) -> list[Row]:
    """Lay the removals out in REPORT_COLUMNS."""
    rows = []
    for row, reason, detail, kept, distance in removals:
        cells = [images.rows[row]["path"], images.rows[row]["label"], reason, detail, "", "", ""]
        if kept is not None:
            cells[4:] = images.rows[kept]["path"], images.rows[kept]["label"], str(distance)
        rows.append(dict(zip(REPORT_COLUMNS, cells, strict=True)))
    return rows


def describe_removals(rows: list[Row]) -> dict[str, list[str]]:
    """Reason -> a line per removed image, for the screen; rows as of `report_rows`."""
    lines: dict[str, list[str]] = {reason: [] for reason in REASONS}
    for row in rows:
        text = f"{row['path']}: {row['detail']}"
        if row["kept"]:
            text = f"{row['path']} of {row['kept']} ({row['distance']} bits)"
        lines[row["reason"]].append(text)
    return lines
