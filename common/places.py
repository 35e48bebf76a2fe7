"""Where what is fetched and computed lies: never among the installed packages."""

from __future__ import annotations

import os
from pathlib import Path

LATEST = "latest"  # links to the folder of the newest run


def data_root() -> Path:
    """Return the folder of all data sets: $METRIC_LEARNING_DATA, else ./data."""
    return Path(os.environ.get("METRIC_LEARNING_DATA") or "data").expanduser()


def cache_root() -> Path:
    """Return the folder of what this project compiles: below $XDG_CACHE_HOME, else ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "metric_learning"


def without_latest(file: str) -> str:
    """Return the path of a file in the newest run without the link to that, which will move on."""
    folder = Path(file).parent
    if folder.name == LATEST and folder.is_symlink():
        return str(folder.parent / os.readlink(folder) / Path(file).name)
    return file
