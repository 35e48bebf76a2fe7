"""Market-1501 and VeRi-776: the class and the camera of an image are in the name of its file."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np

from metric_learning.reader.sets.csv_files import JUNK_LABEL
from metric_learning.reader.sets.left_out import JUNK, LeftOut
from metric_learning.reader.sets.table import TEST, Table, sort_names
from metric_learning.reader.sets.walk import is_image_name

NAME = re.compile(r"(-1|\d+)_c(\d+)")  # 0002_c1s1_000451_03.jpg, 0001_c001_00016450_0.jpg
MARKET_FOLDERS = ("bounding_box_train", "query", "bounding_box_test")
VERI_FOLDERS = ("image_train", "image_query", "image_test")


def read_market1501(data_dir: Path, split: str) -> Table:
    """Read Market-1501 (Zheng et al. 2015, Scalable Person Re-identification), a split of it.

    The test has the queries and their gallery, whose groups are the cameras. Images of the number
    -1, which show parts of persons, are left out; those of 0000, distractors, are a class that no
    query has.
    """
    return _read(data_dir, split, MARKET_FOLDERS)


def read_veri776(data_dir: Path, split: str) -> Table:
    """Read VeRi-776 (Liu et al. 2016, https://doi.org/10.1007/978-3-319-46475-6_53) in that way."""
    return _read(data_dir, split, VERI_FOLDERS)


def _read(data_dir: Path, split: str, folders: tuple[str, str, str]) -> Table:
    """Read training images, queries and gallery, in folders of these names, for a split.

    Classes have one numbering over all of them.
    """
    chosen = folders[1:] if split == TEST else folders[:1]
    for folder in folders:
        if not (data_dir / folder).is_dir():
            raise FileNotFoundError(f"no folder {folder} in {data_dir}")
    found = [(folder, *image) for folder in folders for image in _list_folder(data_dir / folder)]
    names = sort_names(label for _, _, label, _ in found if label != JUNK_LABEL)
    number_of = {name: number for number, name in enumerate(names)}

    members = [image for image in found if image[0] in chosen]
    images = [image for image in members if image[2] != JUNK_LABEL]
    junk = [f"{folder}/{name}" for folder, name, label, _ in members if label == JUNK_LABEL]
    is_query = np.array([folder == folders[1] for folder, *_ in images], dtype=bool)
    return Table(
        [str(data_dir / folder / name) for folder, name, _, _ in images],
        np.array([number_of[label] for _, _, label, _ in images], dtype=np.int64),
        dict(enumerate(names)),
        is_query=is_query if split == TEST else None,
        is_gallery=~is_query if split == TEST else None,
        groups=np.array([camera for _, _, _, camera in images], dtype=np.int64),
        left_out=LeftOut(str(data_dir), {JUNK: junk}),
    )


def _list_folder(folder: Path) -> list[tuple[str, str, int]]:
    """Return name, label and camera of the images of a folder, by name; ValueError for others."""
    images = []
    for name in sorted(filter(is_image_name, os.listdir(folder))):
        parts = NAME.match(name)
        if parts is None:
            raise ValueError(
                f"{folder / name}: expected CLASS_cCAMERA, such as 0002_c1s1_000451_03.jpg"
            )
        images.append((name, parts[1], int(parts[2])))
    return images
