"""The segments of a JPEG file, and what its head says of the image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from metric_learning.reader.sets.exif import EXIF_START, exif_orientation

JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
EOI, SOS, APP1 = 0xD9, 0xDA, 0xE1
# Markers without a length: a stuffed 0xFF of the image data, TEM, restarts and SOI.
BARE_MARKERS = frozenset((0x00, 0x01, *range(0xD0, 0xD9)))
# Start of frame: baseline, extended, progressive and those that hardly exist; not DHT, JPG and DAC.
FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


class JpegHead(NamedTuple):
    """What the head of a JPEG says: height and width in pixels as stored, and orientation."""

    height: int
    width: int
    num_components: int  # 1: grey, 3: colour, 4: CMYK
    orientation: int  # of EXIF, 1..8; 1 where there is none


def segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield the segments of a JPEG: marker, and where its content starts and ends.

    Image data between them is passed over, and so is what else does not belong there. The last one
    is EOI, or one that ends behind the data.
    """
    place = len(JPEG_START)
    while (place := data.find(b"\xff", place)) >= 0 and place + 1 < len(data):
        marker = data[place + 1]
        if marker == 0xFF:  # filling
            place += 1
        elif marker in BARE_MARKERS:
            place += 2
        elif marker == EOI:
            yield marker, place + 2, place + 2
            return
        else:
            end = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
            yield marker, place + 4, end
            place = max(end, place + 4)


def has_scan(data: bytes) -> bool:
    """Whether a JPEG has image data, and not a head alone: GPUs decode that without an error."""
    return any(marker == SOS for marker, _, _ in segments(data))


def read_jpeg_head(data: bytes) -> JpegHead | None:
    """Read the head of a JPEG; None where it is cut short, damaged or does not tell the height.

    It walks as `segments` does, in three microseconds instead of ten: every image waits for it.
    """
    place, orientation = len(JPEG_START), 0
    try:
        while (marker := data[place + 1]) not in FRAME_MARKERS or data[place] != 0xFF:
            if data[place] != 0xFF or marker == 0xFF:
                place = data.index(b"\xff", place + 1)
                continue
            if marker in BARE_MARKERS:
                place += 2
                continue
            if marker in (SOS, EOI):
                return None

            end = place + 2 + (data[place + 2] << 8 | data[place + 3])
            if marker == APP1 and not orientation and data.startswith(EXIF_START, place + 4):
                orientation = exif_orientation(data[place + 4 : end])
            place = max(end, place + 4)

        height, width = (
            data[place + 5] << 8 | data[place + 6],
            data[place + 7] << 8 | data[place + 8],
        )
        head = JpegHead(height, width, data[place + 9], orientation or 1)
        return head if height and width else None
    except (IndexError, ValueError):
        return None
