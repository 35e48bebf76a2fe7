"""Images without labels: one file, all images below a folder, or images in memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from metric_learning.reader.sets.image_set import AS_REFERENCE, Decoding, ImageSet, upright_rgb
from metric_learning.reader.sets.walk import walk_images


def list_plain_images(path: str | Path) -> ImageSet:
    """List one image, or all images below a folder in sorted order; labels are -1.

    See `walk_images` for what is left out. A ValueError if the folder holds no image, a
    FileNotFoundError if there is nothing at that path.
    """
    root = Path(path)
    if not root.exists():
        raise FileNotFoundError(f"{root}: no such image or folder of images")
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


def unlabelled(names: list[str], images: Sequence[np.ndarray] | None = None) -> ImageSet:
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
