"""The files of a report, and what tells them from those of others."""

from __future__ import annotations

from pathlib import Path

from metric_learning.common.outputs import Kind, kind_of_file

TEMPLATES = Path(__file__).with_name("templates")
PAGE, MAP = "index.html", "map.png"
CURVES, NEIGHBOURS = PICTURES = ("curves.png", "neighbours.png")  # of the summary
GENERATOR = "metric-learning"  # stands in page and pictures
# The page of earlier versions has the second.
PAGE_MARKS = (f'<meta name="generator" content="{GENERATOR}">', ">Retrieval report</p>")
HEAD_BYTES = 2**16  # of a file, in which the mark stands


def is_page(path: Path) -> bool:
    """Whether a file is the page of a report."""
    return any(mark.encode() in _head(path) for mark in PAGE_MARKS)


def is_picture(path: Path) -> bool:
    """Whether a file is a picture that a report or a summary drew."""
    head = _head(path)
    return head.startswith(b"\x89PNG") and b"Software\0" + GENERATOR.encode() in head


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEAD_BYTES)


def find_foreign(folder: Path) -> str | None:
    """Return the name of a file in a folder that neither report nor summary wrote, if any."""
    for path in sorted(folder.iterdir()):
        is_ours = is_page if path.name == PAGE else is_picture
        is_named = path.name in (PAGE, MAP, *PICTURES) and path.is_file()
        if not is_named or not is_ours(path):
            return path.name
    return None


REPORT = Kind("a report", find_foreign)
PICTURE = kind_of_file("a picture of a summary", is_picture)
