"""Scans a tree of images: what is where, how large, how it looks, and what is broken."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from metric_learning.data.prepare.hashes import HASH_BITS, perceptual_hash
from metric_learning.reader.sets import folders
from metric_learning.reader.sets.csv_files import Row
from metric_learning.reader.sets.image_files import map_files, read_content
from metric_learning.reader.sets.image_set import MAX_PIXELS, Decoding


def scan_tree(tree: Path, num_workers: int, max_pixels: int = MAX_PIXELS) -> list[Row]:
    """Read every image below a folder of classes, those of up to so many million pixels.

    The label of an image is the path of its folder. In a tree divided into train/ and test/ it is
    the path below these, and they go to the column split.

    Returns:
        Columns path (relative to the tree, with /), label, width and height in pixels, hash (16
        hexadecimal digits, see `perceptual_hash`), broken (the reason, else empty), and split in a
        divided tree.

    Raises FileNotFoundError where there is no folder, ValueError where it has no class folders.
    """
    if not tree.is_dir():
        raise FileNotFoundError(f"no folder {tree}")
    places = [
        (path, label, split)
        for split, folder in _parts(tree).items()
        for label, files in folders.list_classes(folder, levels=None).items()
        for path in files
    ]
    if not places:
        raise ValueError(f"no images in folders of {tree}: expected one folder per class")

    read = partial(scan_file, decoding=Decoding("white", max_pixels))
    found = map_files(read, [path for path, _, _ in places], num_workers)
    rows = []
    for (path, label, split), properties in zip(places, found, strict=True):
        name = os.path.relpath(path, tree).replace(os.sep, "/")
        row = {"path": _printable(name), "label": _printable(label), **properties}
        if row["path"] != name:
            row["broken"] = "the name is not UTF-8"
        rows.append(row | ({"split": split} if split else {}))
    return rows


def scan_file(path: str, decoding: Decoding) -> Row:
    """Read one image: its width, height, hash and broken."""
    content = read_content(path, decoding)
    if content.pixels is None:
        return {"width": "", "height": "", "hash": "", "broken": content.reason}
    height, width = content.pixels.shape[:2]
    code = f"{perceptual_hash(content.pixels):0{HASH_BITS // 4}x}"
    return {"width": str(width), "height": str(height), "hash": code, "broken": ""}


def list_ignored(tree: Path) -> list[str]:
    """Names of what `scan_tree` leaves out: images in no class folder, folders beside train/."""
    parts = _parts(tree)
    loose = [
        os.path.relpath(path, tree)
        for folder in dict.fromkeys((tree, *parts.values()))
        for path in folders.walk_images(folder, levels=0).get("", [])
    ]
    if "" in parts:
        return loose
    beside = sorted(f for f in tree.iterdir() if f.is_dir() and f not in parts.values())
    return loose + [f"{folder.name}/" for folder in beside if not folder.name.startswith(".")]


def _parts(tree: Path) -> dict[str, Path]:
    """Split -> folder of a divided tree, else "" -> the tree."""
    return folders.split_folders(tree) if folders.has_train_test(tree) else {"": tree}


def _printable(name: str) -> str:
    """Write the bytes of a file name that are not UTF-8 as escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
