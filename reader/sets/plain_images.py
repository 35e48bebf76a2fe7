"""Images without labels: files, all images below folders, lists of them, or images in memory."""

from __future__ import annotations

import csv
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from metric_learning.common.names import from_line
from metric_learning.common.packed_lines import open_lines
from metric_learning.reader.sets.image_set import AS_REFERENCE, Decoding, ImageSet, upright_rgb
from metric_learning.reader.sets.left_out import LeftOut
from metric_learning.reader.sets.walk import walk_images

STDIN = "-"
TEXT_LISTS = (".txt", ".lst")  # of paths, one a line
CSV_LIST = ".csv"


def list_plain_images(path: str | Path) -> ImageSet:
    """List one image, all images below a folder in sorted order, or those of a list; labels are -1.

    A list is a text file with a path a line, a CSV file with a column `path`, or `-`, the paths of
    standard input. See `walk_images` for what is left out of a folder. A ValueError if there is no
    image, a FileNotFoundError if there is nothing at that path.
    """
    root = Path(path)
    if str(path) == STDIN:
        return unlabelled(_some(_spooled(), "standard input"))
    if not root.exists():
        raise FileNotFoundError(f"{root}: no such image or folder of images")
    if root.suffix.lower() in TEXT_LISTS:
        return unlabelled(_some(open_lines(root, str(root)), str(root)))
    if root.suffix.lower() == CSV_LIST:
        return unlabelled(_some(_column_of_csv(root), str(root)))
    if not root.is_dir():
        return unlabelled([str(root)])

    walk = walk_images(root)
    files = sorted(
        (file for found in walk.images.values() for file in found),
        key=lambda file: file.split(os.sep),
    )
    if not files:
        found = f"; {walk.left_out.describe()}" if walk.left_out else ""
        raise ValueError(f"no images below {root}: expected files such as .jpg or .png{found}")
    return replace(unlabelled(files), left_out=walk.left_out)


def join_plain_images(paths: Sequence[str]) -> ImageSet:
    """List what `list_plain_images` does of each of several paths, one after the other."""
    found = [list_plain_images(path) for path in paths]
    if len(found) == 1:
        return found[0]
    items = {
        reason: [item for images in found for item in images.left_out.items.get(reason, [])]
        for reason in {reason for images in found for reason in images.left_out.items}
    }
    joined = unlabelled([path for images in found for path in images.paths])
    return replace(joined, left_out=LeftOut(", ".join(paths), items))


def _some(paths: Sequence[str], what: str) -> Sequence[str]:
    """Return paths; ValueError where there is none."""
    if not len(paths):
        raise ValueError(f"{what}: expected paths of images, one a line, found none")
    return paths


def _spooled() -> Sequence[str]:
    """Copy standard input to a file without a name, and map its lines."""
    with tempfile.NamedTemporaryFile(prefix="paths-", suffix=".txt") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
        file.flush()
        return open_lines(Path(file.name), "standard input")


def _column_of_csv(file: Path) -> list[str]:
    """Read the column `path` of a CSV file; relative ones start at the folder of the file."""
    with file.open(encoding="utf-8-sig", newline="", errors="surrogateescape") as opened:
        rows = csv.DictReader(opened, strict=True)
        if "path" not in (rows.fieldnames or ()):
            found = ", ".join(rows.fieldnames or ()) or "nothing"
            raise ValueError(f"{file}: expected a column path, found {found}")
        try:
            return [os.path.join(file.parent, from_line(row["path"])) for row in rows]
        except (csv.Error, TypeError) as error:
            raise ValueError(f"{file}:{rows.line_num}: expected CSV, found: {error}") from error


def unlabelled(names: Sequence[str], images: Sequence[np.ndarray] | None = None) -> ImageSet:
    """Return a set without labels: of paths, or of names of `images` (H, W, 3) uint8 in memory."""
    everywhere = np.ones(len(names), dtype=bool)
    return ImageSet(
        name="images",
        split="test",
        paths=names,
        labels=np.full(len(names), -1, dtype=np.int64),
        class_names={},
        is_query=everywhere,
        is_gallery=everywhere,
        images=images,
    )


def is_one_image(images: Any) -> bool:
    """Whether something is a path, a Pillow image or an array (H, W, 3), and not several."""
    if isinstance(images, np.ndarray):
        return images.ndim == 3
    return isinstance(images, str | PathLike | Image.Image)


def image_set_of(images: Sequence[Any], decoding: Decoding = AS_REFERENCE) -> ImageSet:
    """List paths, or images that are in memory; Pillow's are turned upright, as files are.

    Raises:
        ValueError: there are both, or something else.
    """
    if all(isinstance(image, str | PathLike) for image in images):
        return unlabelled([str(image) for image in images])

    arrays = []
    for number, image in enumerate(images):
        array = upright_rgb(image, decoding.alpha) if isinstance(image, Image.Image) else image
        is_rgb = isinstance(array, np.ndarray) and array.ndim == 3 and array.shape[2] == 3
        if not is_rgb or array.dtype != np.uint8:
            found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array)
            raise ValueError(
                f"image {number}: expected a path, a Pillow image or an array (H, W, 3) uint8, "
                f"found {found}"
            )
        arrays.append(array)
    return unlabelled([f"image {number}" for number in range(len(arrays))], arrays)
