"""Packages that only some of the work needs."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def import_optional(module: str, needed_by: str, package: str | None = None) -> Any:
    """Import a module that may be absent; ValueError, with what pip calls it, where it is."""
    try:
        return import_module(module)
    except ImportError as error:
        package = package or module
        raise ValueError(
            f"{needed_by} needs the package {package}: pip install {package}"
        ) from error
