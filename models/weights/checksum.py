"""A checksum within a .safetensors file of this project, over all of its bytes.

It is the CRC-32 of the file with zeros for the digits of the checksum itself: what torch.save
writes beside every entry of a checkpoint, and cheap beside reading the file.
"""

from __future__ import annotations

import mmap
import zlib
from pathlib import Path

NAME = "checksum"  # of the entry of the header
ZEROS = "crc32:00000000"
MARK = f'"{NAME}":"crc32:'.encode()  # before its digits; texts in the header have no bare quotes
NUM_DIGITS = 8
LENGTH_BYTES = 8  # of the header, before it
LARGEST_HEADER = 100_000_000  # bytes, as safetensors has it


def with_checksum(data: bytes) -> bytes:
    """Return the bytes of a file, whose header has ZEROS, with the checksum in their place."""
    start = data.index(MARK) + len(MARK)
    digits = f"{zlib.crc32(data):0{NUM_DIGITS}x}".encode()
    return data[:start] + digits + data[start + NUM_DIGITS :]


def check_file(path: Path) -> None:
    """Raise ValueError where a file has a checksum and it is not that of its bytes."""
    if path.stat().st_size <= LENGTH_BYTES:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        end = LENGTH_BYTES + int.from_bytes(data[:LENGTH_BYTES], "little")
        found = data.find(MARK, 0, min(end, LARGEST_HEADER))
        if found < 0:
            return
        start = found + len(MARK)

        with memoryview(data) as content:
            digits = bytes(content[start : start + NUM_DIGITS])
            crc = zlib.crc32(content[:start])
            crc = zlib.crc32(b"0" * NUM_DIGITS, crc)
            crc = zlib.crc32(content[start + NUM_DIGITS :], crc)
    if digits != f"{crc:0{NUM_DIGITS}x}".encode():
        raise ValueError(f"{path}: bytes of the file have changed; copy or fetch it again")
