"""Lines on the screen, in the log in the reference's form; the versions a result depends on."""

from __future__ import annotations

import contextlib
import platform
import sys
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version

from tqdm import tqdm

from metric_learning.common.cli import drop_stdout
from metric_learning.common.names import printable


def timestamped(line: str) -> str:
    """Put the time before a log line, in the reference's form; a name in it may hold line ends."""
    return f"[{datetime.now():%Y-%m-%d %H:%M:%S}] {printable(line)}"


def log(line: str) -> str:
    """Print a log line, see `show`, and return it with its time."""
    stamped = timestamped(line)
    show(stamped)
    return stamped


def show(lines: str) -> None:
    """Print a line or several, and keep a progress bar below it.

    A pipe that nobody reads, a terminal that is gone or a full disk must not end the work: there,
    this and all later lines are dropped.
    """
    if sys.stdout is None:
        return
    try:
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        tqdm.write("\n".join(printable(line, encoding) for line in lines.split("\n")))
        sys.stdout.flush()
    except (OSError, ValueError) as error:  # the latter of a closed file
        _drop_lines(error)


def _drop_lines(error: Exception) -> None:
    """Let what is printed from now on, and what still waits to be, go nowhere; say so once."""
    with contextlib.suppress(OSError, ValueError):
        reason = getattr(error, "strerror", None) or error
        print(f"stdout cannot be written ({reason}): going on without it", file=sys.stderr)
    drop_stdout()


def versions() -> dict[str, str]:
    """Return the versions of what a result depends on."""
    found = {"python": platform.python_version()}
    for package in ("torch", "torchvision"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # built from its sources, without a record of it
            found[package] = "unknown"
    return found
