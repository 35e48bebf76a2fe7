"""Finds the images that a list names: all of them, by listing their folders once."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator

FEW = 16  # files of a folder that are looked for one by one
BACKSLASHES, SPACES, FORMS = "\\ in paths", "spaces around parts of paths", "characters of paths"


def locate_files(paths: list[str], root: str) -> tuple[list[str], list[int], Counter[str]]:
    """Find files whose names may be written in another way than those on the disk.

    Where there is no such file, one counts whose path has / for backslashes, no spaces around its
    parts, or characters composed (NFC) or decomposed (NFD); below `root`, which stays as it is.
    Cost: one listing per folder, not a system call per image.

    Returns:
        The N paths as they are on the disk, the numbers of those that are not there (regular
        files alone count), and what was read as the same -> how often.
    """
    folders = _Folders(paths)
    found, missing, unified = list(paths), [], Counter[str]()
    head = os.path.join(root, "")

    for i, path in enumerate(paths):
        if folders.hold(path):
            continue
        start = head if path.startswith(head) else ""
        for other, how in _other_writings(path[len(start) :]):
            if folders.hold(start + other):
                found[i] = start + other
                unified.update(how)
                break
        else:
            missing.append(i)
    return found, missing, unified


def _other_writings(name: str) -> Iterator[tuple[str, list[str]]]:
    """Yield other writings of a path, and what differs in each."""
    if name.isascii() and "\\" not in name and " " not in name:
        return
    tried = {name}
    for slashed, by_slash in ((name, []), (name.replace("\\", "/"), [BACKSLASHES])):
        stripped = "/".join(part.strip() for part in slashed.split("/"))
        for text, by_strip in ((slashed, []), (stripped, [SPACES])):
            forms = (unicodedata.normalize(form, text) for form in ("NFC", "NFD"))
            for other, by_form in ((text, []), *((form, [FORMS]) for form in forms)):
                if other not in tried:
                    tried.add(other)
                    yield other, [*by_slash, *by_strip, *by_form]


class _Folders:
    """Which regular files are there; folders of which many files are asked for are listed once."""

    def __init__(self, paths: list[str]) -> None:
        self._asked = Counter(_cut(path)[0] for path in paths)
        self._names: dict[str, frozenset[str] | None] = {}

    def hold(self, path: str) -> bool:
        """Whether there is such a regular file."""
        folder, name = _cut(path)
        if self._asked[folder] <= FEW:
            return os.path.isfile(path)
        if folder not in self._names:
            self._names[folder] = _regular_files(folder)
        names = self._names[folder]
        if names is None:
            return False
        return name in names or os.path.isfile(path)  # some disks know other writings of a name


def _cut(path: str) -> tuple[str, str]:
    """Cut a path into its folder and name; os.path.split would take four times as long."""
    folder, separator, name = path.rpartition(os.sep)
    return folder or separator, name


def _regular_files(folder: str) -> frozenset[str] | None:
    try:
        with os.scandir(folder or os.curdir) as entries:
            return frozenset(entry.name for entry in entries if _is_file(entry))
    except OSError:
        return None


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link to itself
        return False
