"""How the compiled loops are compiled: once, and again when any of them has changed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba

from metric_learning.common.places import cache_root

FOLDER = Path(__file__).parent
SETTINGS: Any = numba.config


@cache
def _cache_folder() -> str:
    """Folder of the compiled loops, named after the source of all of them.

    numba looks only at the file of the function that it loads, not at those that it calls.
    """
    sources = b"".join(file.read_bytes() for file in sorted(FOLDER.glob("*.py")))
    base = Path(SETTINGS.CACHE_DIR or cache_root())
    return str(base / f"loops-{hashlib.sha256(sources).hexdigest()[:16]}")


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a function that releases the interpreter lock."""
    return _compile(function)


def any_order(function: Callable[..., Any]) -> Any:
    """As `kernel`, but sums may be taken in any order, so that they are vectorised."""
    return _compile(function, fastmath={"reassoc", "contract"})


def _compile(function: Callable[..., Any], **options: Any) -> Any:
    before = SETTINGS.CACHE_DIR
    SETTINGS.CACHE_DIR = _cache_folder()  # looked at when a function is decorated
    try:
        return numba.njit(nogil=True, cache=True, **options)(function)
    finally:
        SETTINGS.CACHE_DIR = before
