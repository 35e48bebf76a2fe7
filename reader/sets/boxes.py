"""Boxes: parts of photos that are images of their own, as tables of detections have them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from metric_learning.reader.sets.text import unify_integers

BOX_COLUMNS = ("x_1", "y_1", "x_2", "y_2")  # of open-metric-learning's tables
NOTHING = ("", "nan", "none")  # cells of a row that has no box
LARGEST = 2**31 - 1  # pixels, what int32 holds
WHOLE = (0, 0, 0, 0)  # stands for all of a photo

Box = tuple[int, int, int, int]


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
