"""The orientation that a camera notes in EXIF: read by hand, in microseconds, and applied."""

from __future__ import annotations

import struct

import numpy as np

EXIF_START = b"Exif\0\0"
_ORDERS = {b"II": "<", b"MM": ">"}
_ORIENTATION = 0x0112

# Orientation -> whether to exchange rows and columns, then to turn rows and columns around.
TURNS = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


def exif_orientation(exif: bytes) -> int:
    """Return the orientation, 1 to 8, that an EXIF block tells; 1 (upright) where it tells none."""
    exif = exif.removeprefix(EXIF_START)
    order = _ORDERS.get(exif[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, value = struct.unpack_from(f"{order}H6xH", exif, entry)
            if tag == _ORIENTATION:
                return value if value in TURNS else 1
    except struct.error:  # cut short
        pass
    return 1


def oriented_shape(shape: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Return the height and width that an image of this height and width has upright."""
    return (shape[1], shape[0]) if TURNS[orientation][0] else shape


def orient(rgb: np.ndarray, orientation: int) -> np.ndarray:
    """Turn an image (H, W, 3) upright; contiguous."""
    is_transposed, turns_rows, turns_columns = TURNS[orientation]
    rgb = rgb.swapaxes(0, 1) if is_transposed else rgb
    rgb = rgb[::-1] if turns_rows else rgb
    return np.ascontiguousarray(rgb[:, ::-1] if turns_columns else rgb)
