"""Scans a tree of images: what is where, how large, how it looks, and what is broken."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from metric_learning.common.fingerprint import state_of
from metric_learning.common.names import to_line
from metric_learning.data.prepare.hashes import HASH_BITS, perceptual_hash
from metric_learning.reader.sets import folders
from metric_learning.reader.sets.csv_files import ImageList, Row
from metric_learning.reader.sets.image_files import map_files, read_content
from metric_learning.reader.sets.image_set import MAX_PIXELS, Decoding
from metric_learning.reader.sets.left_out import LeftOut, join_left_out

SCAN_COLUMNS = ("path", "label", "width", "height", "hash", "broken")
STATE = "state"  # of the file, see `state_of`; lists of earlier versions lack it


def scan_tree(
    tree: Path, class_levels: int, num_workers: int, max_pixels: int = MAX_PIXELS
) -> tuple[list[Row], LeftOut]:
    """Read every image below a folder of classes, those of up to so many million pixels.

    The label of an image is the top folder that it lies in, or a path of so many `class_levels`
    (0: of all). In a tree divided into train/, val/ and test/ it is that below these, and they go
    to the column split.

    Returns:
        Columns path (relative to the tree, with /), label, width and height in pixels, hash (16
        hexadecimal digits, see `perceptual_hash`), broken (the reason, else empty), state (see
        `state_of`), and split in a divided tree; and what is left out.

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
        row = {"path": name, "label": label, **properties}
        rows.append(row | ({"split": split} if split else {}))
    return rows, left_out


def _list_places(tree: Path, class_levels: int) -> tuple[list[tuple[str, str, str]], LeftOut]:
    """List path, label and split ("" in an undivided tree) of all images, and what is left out."""
    divided = folders.find_divided(tree)
    if divided is None:
        parts = {"": folders.list_classes(tree, class_levels)}
        if class_levels == 1 and len(parts[""][0]) == 1:
            folders.refuse_outer_folder(tree / next(iter(parts[""][0])))
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
    """Read one image: its width, height, hash and broken, and the state of its file before."""
    state = state_of(path)
    content = read_content(path, decoding)
    found = {"width": "", "height": "", "hash": "", "broken": content.reason, STATE: state}
    if content.pixels is None:
        return found
    height, width = content.pixels.shape[:2]
    code = f"{perceptual_hash(content.pixels):0{HASH_BITS // 4}x}"
    return found | {"width": str(width), "height": str(height), "hash": code}


def scan_again(
    images: ImageList, folder: Path, num_workers: int, max_pixels: int, verify: bool
) -> tuple[ImageList, str]:
    """Read the images of a scanned list again whose files are no longer those that were scanned.

    Args:
        images: paths are relative to `folder`.
        folder: of the images.
        num_workers: as in `scan_tree`.
        max_pixels: likewise.
        verify: read every image.

    Returns:
        The list as it would be now, and a line about what was read again, or is not there to be
        compared; empty where nothing has changed.
    """
    paths = [os.path.join(folder, row["path"]) for row in images.rows]
    if not any(os.path.lexists(path) for path in paths):
        return images, (
            f"no image of {images.file} is in {folder}: whether they have changed since they were "
            "scanned is not known; --data_dir=FOLDER says where they are"
        )

    changed = [
        i
        for i, (row, path) in enumerate(zip(images.rows, paths, strict=True))
        if verify or row.get(STATE) != state_of(path)
    ]
    if not changed:
        return images, ""
    read = partial(scan_file, decoding=Decoding("white", max_pixels))
    found = map_files(read, [paths[i] for i in changed], num_workers)
    rows = list(images.rows)
    for i, properties in zip(changed, found, strict=True):
        rows[i] = rows[i] | properties

    columns = tuple(dict.fromkeys((*images.columns, STATE)))
    why = "to verify them" if verify else "whose files are others than those that were scanned"
    line = (
        f"read again {len(changed):,} of {len(rows):,} images {why}, the first "
        f"{to_line(images.rows[changed[0]]['path'])}"
    )
    return replace(images, columns=columns, rows=rows), line


def read_hashes(images: ImageList) -> np.ndarray:
    """Return the hashes of N images that scan could read, (N,) uint64; ValueError names a line."""
    # A hash has all 64 bits, which int64 holds as a negative number.
    return images.parse("hash", _parse_hash, "16 hexadecimal digits").view(np.uint64)


def _parse_hash(text: str) -> int:
    """Read a hash as a signed number of the same 64 bits."""
    if len(text) != HASH_BITS // 4:
        raise ValueError(f"expected {HASH_BITS // 4} digits")
    return int.from_bytes(bytes.fromhex(text), "big", signed=True)
