"""Write files so that they are whole at every moment."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

TEMPORARY = re.compile(r"\.(?P<name>.+)\.\d+\.tmp")  # .NAME.PID.tmp


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside `path` and rename it, so that `path` is always whole, and on the disk.

    Raises OSError, with `path` as its `filename`, where it cannot; what was there still is.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        _sync(temporary)
        os.replace(temporary, path)
        with contextlib.suppress(OSError):  # some network file systems sync no folders
            _sync(path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Wait until a file, or the list of files of a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path, names: re.Pattern[str]) -> None:
    """Delete what killed writers left of the files with these names; no writer may be alive."""
    for path in folder.glob(".*.tmp"):
        match = TEMPORARY.fullmatch(path.name)
        if match and names.fullmatch(match["name"]):
            path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically, indented."""
    write_text(path, json.dumps(value, indent=2) + "\n")
