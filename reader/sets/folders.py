"""Folders of images, and data sets of one folder per class: any such tree, and Omniglot."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from metric_learning.reader.sets.formats import image_suffixes
from metric_learning.reader.sets.table import Table, first_classes

IMAGE_SUFFIXES = image_suffixes()
FOLDER_LAYOUT = "train/CLASS/* and test/CLASS/*, or CLASS/*"
NUM_OMNIGLOT_TRAIN_ALPHABETS = 20


def walk_images(root: str | Path, levels: int | None = None) -> dict[str, list[str]]:
    """List the images below a folder, by the folder that they lie in.

    Hidden files and folders are left out; links to folders are followed, `levels` deep: 0: only
    what lies in the folder itself; None: all.

    Returns:
        Path of a folder that holds images, relative to root and with / ("" is root itself) -> paths
        of its images, both sorted.
    """
    images_in: dict[str, list[str]] = {}
    for folder, below, files in os.walk(root, onerror=_raise, followlinks=True):
        name = os.path.relpath(folder, root).replace(os.sep, "/")
        name = "" if name == "." else name
        depth = name.count("/") + 1 if name else 0
        below[:] = [f for f in below if not f.startswith(".") and depth != levels]

        images = [f for f in files if f.lower().endswith(IMAGE_SUFFIXES) and not f.startswith(".")]
        if images:
            images_in[name] = [os.path.join(folder, file) for file in sorted(images)]
    return dict(sorted(images_in.items(), key=lambda item: item[0].split("/")))


def _raise(error: OSError) -> None:
    raise error


def list_classes(root: Path, levels: int | None = 1) -> dict[str, list[str]]:
    """Class name -> image paths, both sorted: the folders below root, of so many levels.

    The name of a class is the path of its folder: "cat", or "Greek/character01" deeper down.
    """
    classes = walk_images(root, levels)
    classes.pop("", None)
    return classes


def flatten(
    files_of: dict[str, list[str]], number_of: dict[str, int]
) -> tuple[list[str], np.ndarray]:
    """Paths and class numbers of all images, class after class."""
    paths = [path for files in files_of.values() for path in files]
    numbers = [number_of[name] for name in files_of]
    counts = [len(files) for files in files_of.values()]
    return paths, np.repeat(np.array(numbers, dtype=np.int64), counts)


def read_train_test(data_dir: Path, split: str) -> Table:
    """Read train/CLASS/* and test/CLASS/*; classes are the sorted union of both."""
    files_of = {name: list_classes(folder) for name, folder in split_folders(data_dir).items()}
    names = sorted({*files_of["train"], *files_of["test"]})
    number_of = {name: number for number, name in enumerate(names)}
    paths, classes = flatten(files_of[split], number_of)
    return Table(paths, classes, dict(enumerate(names)))


def split_folders(data_dir: Path) -> dict[str, Path]:
    """Return the folders of a divided tree: train/, and test/ or, as ImageNet calls it, val/."""
    test = data_dir / "test"
    return {"train": data_dir / "train", "test": test if test.is_dir() else data_dir / "val"}


def has_train_test(data_dir: Path) -> bool:
    """Whether a folder is divided into train/ and test/ (or val/)."""
    return all(folder.is_dir() for folder in split_folders(data_dir).values())


def read_folder(data_dir: Path, split: str) -> Table:
    """Read train/ and test/ trees, or one tree whose first half of classes is for training.

    For tests the test tree is enough.
    """
    if has_train_test(data_dir):
        return read_train_test(data_dir, split)
    files_of = list_classes(data_dir)
    num_train_classes = (len(files_of) + 1) // 2
    tests = split_folders(data_dir)["test"]
    if not files_of and split == "test" and tests.is_dir():
        files_of = list_classes(tests)  # none of them for training
    if not files_of:
        raise FileNotFoundError(f"no class folders with images in {data_dir}")
    return table_by_class(files_of, num_train_classes, split)


def table_by_class(files_of: dict[str, list[str]], num_train_classes: int, split: str) -> Table:
    """Table of a tree of classes of which the first num_train_classes are for training."""
    names = list(files_of)
    paths, classes = flatten(files_of, {name: number for number, name in enumerate(names)})
    return Table(
        paths,
        classes,
        dict(enumerate(names)),
        in_split=first_classes(classes, num_train_classes, split),
    )


def read_omniglot(data_dir: Path, split: str) -> Table:
    """Read ALPHABET/character/*.png; the first 20 alphabets are for training."""
    nested = (data_dir / "images_background", data_dir / "omniglot-py" / "images_background")
    root = next((folder for folder in nested if folder.is_dir()), data_dir)
    files_of = {name: files for name, files in list_classes(root, 2).items() if "/" in name}
    if not files_of:
        raise FileNotFoundError(f"no images_background/ALPHABET/character/*.png in {data_dir}")

    alphabets = [name.partition("/")[0] for name in files_of]
    for_training = sorted(set(alphabets))[:NUM_OMNIGLOT_TRAIN_ALPHABETS]
    return table_by_class(files_of, sum(a in for_training for a in alphabets), split)
