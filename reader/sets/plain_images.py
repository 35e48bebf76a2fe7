"""Images without labels: files, all images below folders, lists of them, or images in memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from metric_learning.common.archives import ARCHIVE, COMPRESSED
from metric_learning.common.packed_lines import JoinedLines
from metric_learning.reader.sets.boxes import WHOLE
from metric_learning.reader.sets.image_set import (
    AS_REFERENCE,
    Decoding,
    ImageSet,
    decode_image,
    upright_rgb,
)
from metric_learning.reader.sets.left_out import NO_IMAGE, LeftOut
from metric_learning.reader.sets.listed import (
    read_archives,
    read_paths_of_csv,
    read_standard_input,
    read_text_list,
)
from metric_learning.reader.sets.walk import walk_images

STDIN = "-"
TEXT_LISTS = (".txt", ".lst")  # of paths, one a line
CSV_LIST = ".csv"


def list_plain_images(path: str | Path) -> ImageSet:
    """List one image, all images below a folder in sorted order, or those of a list; labels are -1.

    A list is a text file with a path a line, a CSV file with a column `path` and boxes, if any, a
    tar archive, or `-`, the paths of standard input. See `walk_images` for what is left out of a
    folder; one without images is that of its tar archives. A ValueError if there is no image, a
    FileNotFoundError if there is nothing at that path.
    """
    root = Path(path)
    if str(path) == STDIN:
        return unlabelled(read_standard_input())
    if not root.exists():
        raise FileNotFoundError(f"{root}: no such image or folder of images")
    if root.suffix.lower() in TEXT_LISTS:
        return unlabelled(read_text_list(root))

    if root.suffix.lower() == CSV_LIST:
        names, boxes = read_paths_of_csv(root)
        return replace(unlabelled(names), boxes=boxes)
    if root.is_dir():
        return _list_folder(root)
    if root.name.lower().endswith((ARCHIVE, *COMPRESSED)):
        return _list_archives([str(root)])
    return unlabelled([str(root)])


def _list_folder(root: Path) -> ImageSet:
    """List all images below a folder, or in its tar archives where there is no other one."""
    walk = walk_images(root)
    files = sorted(
        (file for found in walk.images.values() for file in found),
        key=lambda file: file.split(os.sep),
    )
    if not files:
        names = walk.left_out.items.get(NO_IMAGE, [])
        archives = sorted(name for name in names if name.lower().endswith(ARCHIVE))
        if archives:
            return _list_archives([os.path.join(root, name) for name in archives])
        found = f"; {walk.left_out.describe()}" if walk.left_out else ""
        raise ValueError(f"no images below {root}: expected files such as .jpg or .png{found}")
    return replace(unlabelled(files), left_out=walk.left_out)


def _list_archives(archives: Sequence[str]) -> ImageSet:
    paths, notes = read_archives(archives)
    return replace(unlabelled(paths), notes=notes)


def join_plain_images(paths: Sequence[str]) -> ImageSet:
    """List what `list_plain_images` does of each of several paths, one after the other."""
    return join_image_sets([list_plain_images(path) for path in paths], paths)


def join_image_sets(found: Sequence[ImageSet], paths: Sequence[str]) -> ImageSet:
    """Put sets without labels together, which were listed of several paths."""
    if len(found) == 1:
        return found[0]
    items = {
        reason: [item for images in found for item in images.left_out.items.get(reason, [])]
        for reason in {reason for images in found for reason in images.left_out.items}
    }
    joined = unlabelled(JoinedLines([images.paths for images in found]))
    return replace(
        joined,
        left_out=LeftOut(", ".join(paths), items),
        notes=tuple(note for images in found for note in images.notes),
        boxes=_joined_boxes(found),
    )


def _joined_boxes(found: Sequence[ImageSet]) -> np.ndarray | None:
    """Put the boxes of several sets together, (N, 4) int32; None where no set has any."""
    if all(images.boxes is None for images in found):
        return None
    whole = np.array(WHOLE, np.int32)
    return np.concatenate(
        [np.tile(whole, (len(f), 1)) if f.boxes is None else f.boxes for f in found]
    )


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
    """Whether something is an image as `image_set_of` takes them, and not several."""
    if isinstance(images, np.ndarray):
        return images.ndim == 3
    return isinstance(images, str | bytes | PathLike | Image.Image)


def image_set_of(images: Sequence[Any], decoding: Decoding = AS_REFERENCE) -> ImageSet:
    """List paths, or images in memory: arrays, Pillow's, which are turned upright, files' contents.

    Raises:
        ImageError: the content of a file is no image.
        ValueError: there are paths and others, or something else.
    """
    if all(isinstance(image, str | PathLike) for image in images):
        return unlabelled([str(image) for image in images])

    arrays = []
    for number, image in enumerate(images):
        array = image
        if isinstance(image, Image.Image):
            array = upright_rgb(image, decoding.alpha)
        elif isinstance(image, bytes):
            array = decode_image(image, f"image {number}", decoding)
        is_rgb = isinstance(array, np.ndarray) and array.ndim == 3 and array.shape[2] == 3
        if not is_rgb or array.dtype != np.uint8:
            found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array)
            raise ValueError(
                f"image {number}: expected a path, a Pillow image, an array (H, W, 3) uint8 or the "
                f"bytes of a file, found {found}"
            )
        arrays.append(array)
    return unlabelled([f"image {number}" for number in range(len(arrays))], arrays)
