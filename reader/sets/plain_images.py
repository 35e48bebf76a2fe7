"""A set of plain images without labels: one file, or all images below a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from metric_learning.reader.sets.folders import walk_images
from metric_learning.reader.sets.image_set import ImageSet


def list_plain_images(path: str | Path) -> ImageSet:
    """List one image, or all images below a folder in sorted order; labels are -1.

    Hidden files and folders are left out.

    Raises:
        ValueError: the folder holds no image.
        FileNotFoundError: there is nothing at that path.
    """
    root = Path(path)
    if not root.exists():
        raise FileNotFoundError(f"{root}: no such image or folder of images")
    files = [root]
    if root.is_dir():
        files = sorted(Path(file) for found in walk_images(root).values() for file in found)
    if not files:
        raise ValueError(f"no images below {root}: expected files such as .jpg or .png")

    everywhere = np.ones(len(files), dtype=bool)
    return ImageSet(
        name="images",
        split="test",
        paths=[str(file) for file in files],
        labels=np.full(len(files), -1, dtype=np.int64),
        class_names={},
        is_query=everywhere,
        is_gallery=everywhere,
    )
