"""Packages that only some of the work needs."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def import_optional(module: str, needed_by: str, package: str | None = None) -> Any:
    """Import a module that may be absent.

    Args:
        module: its name, as in an import statement.
        needed_by: what cannot be done without it, for the error.
        package: what pip calls it; None: as the module.

    Raises:
        ValueError: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = package or module
        raise ValueError(
            f"{needed_by} needs the package {package}: pip install {package}"
        ) from error
