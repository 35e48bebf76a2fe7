"""A drawn data set: a folder in the layout of Stanford Online Products, and what made it.

A marker file in it holds the arguments of the drawing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from metric_learning.common.schema import read_json

LISTS = {"train": "Ebay_train.txt", "test": "Ebay_test.txt"}
HEADER = "image_id class_id super_class_id path"


def is_made_of(folder: Path, marker: str, arguments: Mapping[str, Any]) -> bool:
    """Whether the folder holds what these arguments draw."""
    try:
        return bool(read_json(folder / marker, marker) == arguments)
    except (OSError, ValueError):
        return False


def find_foreign(folder: Path, marker: str) -> str | None:
    """Return the name of something in a folder that was not drawn there, if any."""
    if not (folder / marker).is_file():
        return min(path.name for path in folder.iterdir())
    lines = [
        line for name in LISTS.values() for line in (folder / name).read_text().splitlines()[1:]
    ]
    drawn = {marker, *LISTS.values(), *(line.split()[-1] for line in lines)}
    names = (
        os.path.relpath(os.path.join(parent, name), folder)
        for parent, _, names in os.walk(folder)
        for name in names
    )
    return min((name for name in names if name not in drawn), default=None)


def write_lists(
    folder: Path,
    lines: Mapping[str, Iterable[str]],
    marker: str,
    arguments: Mapping[str, Any],
) -> None:
    """Write the lists of the images of each split, and the marker of a set that is complete."""
    for split, own in lines.items():
        (folder / LISTS[split]).write_text("\n".join([HEADER, *own]) + "\n")
    (folder / marker).write_text(json.dumps(arguments) + "\n")
