"""Write files so that they are whole at every moment."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

TEMPORARY = re.compile(r"\.(?P<name>.+)\.\d+\.tmp")  # .NAME.PID.tmp


def temporary_beside(path: Path) -> Path:
    """Return the name under which what is to be `path` is written."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside `path` and rename it, so that `path` is always whole, and on the disk.

    Where `path` is a link, the file that it leads to is replaced. Raises OSError, with `path` as
    its `filename`, where it cannot; what was there still is.
    """
    path = Path(os.path.realpath(path))
    temporary = temporary_beside(path)
    try:
        write(temporary)
        sync(temporary)
        os.replace(temporary, path)
        with contextlib.suppress(OSError):  # some network file systems sync no folders
            sync(path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def add_once(path: Path, text: str) -> bool:
    """Write a UTF-8 text file, whole at every moment, unless one is there: False.

    Of several processes, on several machines that share the folder, one alone adds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        temporary.write_text(text, "utf-8")
        sync(temporary)
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


def sync(path: Path) -> None:
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


def write_text(path: Path, text: str, errors: str = "surrogateescape") -> None:
    """Write a UTF-8 text file atomically, its line ends as they are.

    Names of files whose bytes are not UTF-8 get these back, or what `errors` makes of them; what
    even that cannot write becomes an escape.
    """
    try:
        content = text.encode("utf-8", errors)
    except UnicodeEncodeError:  # a lone surrogate that no file name has
        content = text.encode("utf-8", "backslashreplace")
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


def write_csv(
    path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]], line_end: str = "\n"
) -> None:
    """Write a CSV file atomically: a line of the columns, then a line per row."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator=line_end)
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically, indented, in ASCII."""
    write_text(path, json.dumps(value, indent=2) + "\n")
