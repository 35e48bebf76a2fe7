"""Files that people or programs wrote: regular ones alone, and text with a limit."""

from __future__ import annotations

from pathlib import Path


def check_regular(path: Path, what: str) -> None:
    """Raise ValueError where something is there that has no end, such as a pipe or a device."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{what}: expected a regular file, found a folder or a device")


def read_text(path: Path, what: str, largest: int, errors: str = "strict") -> str:
    """Read a UTF-8 text file whose line ends stay as they are.

    Args:
        path: a regular file.
        what: its name in messages.
        largest: bytes that it may have.
        errors: what happens with bytes that are not UTF-8, as in `bytes.decode`.

    Raises:
        ValueError: it is too large, no regular file or not UTF-8.
        OSError: it cannot be read.
    """
    check_regular(path, what)
    with path.open("rb") as file:
        content = file.read(largest + 1)
    if len(content) > largest:
        raise ValueError(f"{what}: expected at most {largest:,} bytes, found more")

    try:
        return content.decode("utf-8-sig", errors)
    except UnicodeDecodeError as error:
        raise ValueError(f"{what}: expected UTF-8 text ({error})") from error
