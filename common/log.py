"""Log lines in the reference's form, and the versions that a result depends on."""

from __future__ import annotations

import platform
import sys
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version

from tqdm import tqdm


def timestamped(line: str) -> str:
    """Put the time before a log line, in the reference's form; a name in it may hold line ends."""
    whole = line.replace("\n", "\\n").replace("\r", "\\r")
    return f"[{datetime.now():%Y-%m-%d %H:%M:%S}] {whole}"


def log(line: str) -> str:
    """Print a log line and return it with its time; a progress bar is kept below it."""
    stamped = timestamped(line)
    tqdm.write(stamped)
    sys.stdout.flush()
    return stamped


def versions() -> dict[str, str]:
    """Return the versions of what a result depends on."""
    found = {"python": platform.python_version()}
    for package in ("torch", "torchvision"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # built from its sources, without a record of it
            found[package] = "unknown"
    return found
