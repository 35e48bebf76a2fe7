"""Boxes: parts of photos that are images of their own, as tables of detections have them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from metric_learning.reader.sets.text import unify_integers

BOX_COLUMNS = ("x_1", "y_1", "x_2", "y_2")  # of open-metric-learning's tables
NOTHING = ("", "nan", "none")  # cells of a row that has no box
LARGEST = 2**31 - 1  # pixels, what int32 holds
WHOLE = (0, 0, 0, 0)  # stands for all of a photo

PART = re.compile(r"(.+) \((-?\d+),(-?\d+),(-?\d+),(-?\d+)\)", re.DOTALL)

Box = tuple[int, int, int, int]
Key = tuple[str, Box]  # what makes two images the same: their absolute path, and the part of it


def parse_box(cells: Sequence[str]) -> Box:
    """Read the cells of BOX_COLUMNS: pixels of the upright image, the last two exclusive.

    Four empty cells are WHOLE. Raises ValueError for anything else than whole numbers, and for a
    box without an area.
    """
    if all(cell.strip().lower() in NOTHING for cell in cells):
        return WHOLE
    shown = ",".join(cells)
    try:
        x_1, y_1, x_2, y_2 = (int(unify_integers(cell.strip())) for cell in cells)
    except ValueError as error:
        raise ValueError(
            f"expected a box {','.join(BOX_COLUMNS)} in whole pixels, or empty cells; found "
            f"'{shown}'"
        ) from error

    if max(abs(side) for side in (x_1, y_1, x_2, y_2)) > LARGEST:
        raise ValueError(f"expected a box of at most {LARGEST} pixels a side, found '{shown}'")
    if x_2 <= x_1 or y_2 <= y_1:
        raise ValueError(f"expected a box with x_1 < x_2 and y_1 < y_2, found '{shown}'")
    return x_1, y_1, x_2, y_2


def parse_corner_box(text: str) -> Box:
    """Read a cell `[x, y, width, height]` in pixels, as wildlife-datasets and COCO have it.

    The sides are rounded as Pillow's `crop` does. An empty cell is WHOLE. Raises ValueError for
    anything else, and for a box without an area.
    """
    if text.strip().lower() in NOTHING:
        return WHOLE
    try:
        x, y, width, height = map(float, text.strip().strip("[]()").split(","))
        sides = [str(round(side)) for side in (x, y, x + width, y + height)]
    except (ValueError, OverflowError) as error:
        raise ValueError(
            f"expected a box [x, y, width, height] in pixels, or an empty cell; found '{text}'"
        ) from error
    return parse_box(sides)


def crop_box(image: np.ndarray, box: Sequence[int]) -> np.ndarray:
    """Cut a box out of an upright image (H, W, 3); what lies beyond its edges is left away.

    Raises ValueError where nothing of the box is in the image.
    """
    x_1, y_1, x_2, y_2 = map(int, box)
    if (x_1, y_1, x_2, y_2) == WHOLE:
        return image
    height, width = image.shape[:2]
    part = image[max(0, y_1) : max(0, y_2), max(0, x_1) : max(0, x_2)]
    if not part.size:
        raise ValueError(f"box {format_box(box)} is outside of its {width} x {height} pixels")
    return np.ascontiguousarray(part)


def format_box(box: Sequence[int]) -> str:
    """Write a box as `x_1,y_1,x_2,y_2`."""
    return ",".join(str(int(side)) for side in box)


def name_part(path: str, box: Sequence[int] | None) -> str:
    """Name a part of a photo, `PATH (x_1,y_1,x_2,y_2)`; all of one is its path."""
    return path if box is None or tuple(box) == WHOLE else f"{path} ({format_box(box)})"


def keys_of(paths: Iterable[str], boxes: np.ndarray | None) -> Iterator[Key]:
    """Yield what tells images apart, of each; `boxes` (N, 4) are None where all are whole."""
    places = map(os.path.abspath, paths)
    if boxes is None:
        yield from ((place, WHOLE) for place in places)
        return
    for place, box in zip(places, boxes, strict=True):
        x_1, y_1, x_2, y_2 = box.tolist()
        yield place, (x_1, y_1, x_2, y_2)


def parse_part(name: str) -> tuple[str, Box] | None:
    """Read what `name_part` wrote of a part: its path and box; None where it names no part.

    Four zeros are WHOLE. Raises ValueError for a box without an area.
    """
    match = PART.fullmatch(name)
    if match is None:
        return None
    path, *sides = match.groups()
    return path, WHOLE if set(sides) == {"0"} else parse_box(sides)
