"""The one walk through folders of images: training, preparation, inference and queries take it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from metric_learning.reader.sets import left_out
from metric_learning.reader.sets.formats import image_suffixes
from metric_learning.reader.sets.left_out import REASONS, LeftOut

FOLDER, IMAGE = "folder", "image"

IMAGE_SUFFIXES = image_suffixes()


@dataclass(frozen=True)
class Walk:
    """What lies below a folder.

    `folders` are the names of the folders right below it, those without an image among them.
    `images` has the path of each folder that holds images, relative to the root and with / (""
    is the root itself), in the order of the paths' parts, and the sorted paths of its images.
    """

    folders: list[str]
    images: dict[str, list[str]]
    left_out: LeftOut

    @property
    def has_classes(self) -> bool:
        """Whether there are images in folders of the root."""
        return any(name for name in self.images)


def is_image_name(name: str) -> bool:
    """Whether a file of this name is taken for an image."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def walk_images(root: str | Path) -> Walk:
    """List the images below a folder, and what is left out.

    Links to folders are followed. Below each folder of the root no folder is read twice, so that
    circles of links end. Hidden files and folders are left out, and files that are no regular
    ones; a folder is a folder whatever its name ends in. Raises OSError where one cannot be read.
    """
    folders: list[str] = []
    images: dict[str, list[str]] = {}
    items: dict[str, list[str]] = {}
    for name, folder, kinds in _iterate_folders(os.fspath(root)):
        prefix = f"{name}/" if name else ""
        folders = folders if name else kinds[FOLDER]
        if kinds[IMAGE]:
            images[name] = [os.path.join(folder, entry) for entry in kinds[IMAGE]]
        for reason in kinds.keys() & REASONS.keys():
            items.setdefault(reason, []).extend(f"{prefix}{entry}" for entry in kinds[reason])
    ordered = dict(sorted(images.items(), key=lambda item: item[0].split("/")))
    return Walk(folders, ordered, LeftOut(os.fspath(root), items))


def _iterate_folders(root: str) -> Iterator[tuple[str, str, dict[str, list[str]]]]:
    """Yield each folder's name relative to the root, its path, and what `list_folder` says of it.

    Folders wait in a list: how deep they lie is bounded by the file system alone.
    """
    waiting = [("", root, {_identity(root)})]
    while waiting:
        name, folder, seen = waiting.pop()
        kinds = list_folder(folder)
        entered = []

        for entry in kinds[FOLDER]:
            path = os.path.join(folder, entry)
            below, identity = seen if name else set(seen), _identity(path)
            if identity in below:
                kinds.setdefault(left_out.LINK, []).append(entry)
                continue
            below.add(identity)
            entered.append(entry)
            waiting.append((f"{name}/{entry}" if name else entry, path, below))

        kinds[FOLDER] = entered
        yield name, folder, kinds


def list_folder(folder: str | Path) -> dict[str, list[str]]:
    """List the names in a folder by kind: FOLDER, IMAGE, or why they are left out; each sorted.

    Folders that are no links come first, so that what lies in the tree itself is found there.
    """
    kinds: dict[str, list[str]] = {FOLDER: [], IMAGE: []}
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: (entry.is_symlink(), entry.name)):
            kinds.setdefault(_kind(entry), []).append(entry.name)
    return {kind: names if kind == FOLDER else sorted(names) for kind, names in kinds.items()}


def _identity(folder: str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _kind(entry: os.DirEntry[str]) -> str:
    if entry.name.startswith("."):
        return left_out.HIDDEN
    try:
        if entry.is_dir():
            return FOLDER
        if entry.is_file():
            return IMAGE if is_image_name(entry.name) else left_out.NO_IMAGE
    except OSError:  # a link to itself
        return left_out.LINK
    return left_out.LINK if entry.is_symlink() else left_out.SPECIAL
