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
from metric_learning.reader.sets.left_out import LeftOut, join_left_out

SCAN_COLUMNS = ("path", "label", "width", "height", "hash", "broken")


def scan_tree(
    tree: Path, class_levels: int, num_workers: int, max_pixels: int = MAX_PIXELS
) -> tuple[list[Row], LeftOut]:
    """Read every image below a folder of classes, those of up to so many million pixels.

    The label of an image is the top folder that it lies in, or a path of so many `class_levels`
    (0: of all). In a tree divided into train/, val/ and test/ it is that below these, and they go
    to the column split.

    Returns:
        Columns path (relative to the tree, with /), label, width and height in pixels, hash (16
        hexadecimal digits, see `perceptual_hash`), broken (the reason, else empty), and split in a
        divided tree; and what is left out.

    Raises FileNotFoundError where there is no folder, ValueError where it has no class folders.
    """
    if not tree.is_dir():
        raise FileNotFoundError(f"no folder {tree}")
    places, left_out = _list_places(tree, class_levels)
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
    return rows, left_out


def _list_places(tree: Path, class_levels: int) -> tuple[list[tuple[str, str, str]], LeftOut]:
    """List path, label and split ("" in an undivided tree) of all images, and what is left out."""
    divided = folders.find_divided(tree)
    if divided is None:
        parts = {"": folders.list_classes(tree, class_levels)}
    else:
        splits = folders.splits_of_folder(tree)
        parts = {split: divided.read(split, class_levels) for split in splits}
    places = [
        (path, label, split)
        for split, (classes, _) in parts.items()
        for label, files in classes.items()
        for path in files
    ]
    return places, join_left_out([account for _, account in parts.values()], str(tree))


def scan_file(path: str, decoding: Decoding) -> Row:
    """Read one image: its width, height, hash and broken."""
    content = read_content(path, decoding)
    if content.pixels is None:
        return {"width": "", "height": "", "hash": "", "broken": content.reason}
    height, width = content.pixels.shape[:2]
    code = f"{perceptual_hash(content.pixels):0{HASH_BITS // 4}x}"
    return {"width": str(width), "height": str(height), "hash": code, "broken": ""}


def _printable(name: str) -> str:
    """Write the bytes of a file name that are not UTF-8 as escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
