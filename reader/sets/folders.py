"""Data sets laid out as one folder of images per class: any such tree, and Omniglot."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from metric_learning.reader.sets.table import Table, first_classes

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2"),
)
FOLDER_LAYOUT = "train/CLASS/* and test/CLASS/*, or CLASS/*"
NUM_OMNIGLOT_TRAIN_ALPHABETS = 20


def list_folders(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted; hidden ones are left out."""
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if not e.name.startswith(".") and e.is_dir())


def list_images(folder: Path) -> list[str]:
    """Paths of the images that lie in a folder itself, sorted; hidden ones are left out."""
    return [
        os.path.join(folder, file)
        for file in sorted(os.listdir(folder))
        if file.lower().endswith(IMAGE_SUFFIXES) and not file.startswith(".")
    ]


def list_classes(folder: Path) -> dict[str, list[str]]:
    """Class name -> image paths, both sorted, of the folders that hold images."""
    classes = {}
    for name in list_folders(folder):
        files = list_images(folder / name)
        if files:
            classes[name] = files
    return classes


def list_class_tree(root: Path) -> dict[str, list[str]]:
    """Class name -> image paths, both sorted, of all folders below root that hold images.

    The name of a class is the path of its folder: "cat", or "Greek/character01" deeper down.
    """
    classes = list_classes(root)
    for folder in list_folders(root):
        below = list_class_tree(root / folder)
        classes |= {f"{folder}/{name}": files for name, files in below.items()}
    return dict(sorted(classes.items()))


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
    folders = {"train": data_dir / "train", "test": folder_of_tests(data_dir)}
    files_of = {name: list_classes(folder) for name, folder in folders.items()}
    names = sorted({*files_of["train"], *files_of["test"]})
    number_of = {name: number for number, name in enumerate(names)}
    paths, classes = flatten(files_of[split], number_of)
    return Table(paths, classes, dict(enumerate(names)))


def has_train_test(data_dir: Path) -> bool:
    """Whether a folder is divided into train/ and test/ (or val/)."""
    return (data_dir / "train").is_dir() and folder_of_tests(data_dir).is_dir()


def folder_of_tests(data_dir: Path) -> Path:
    """Return the folder of test images: test/, or val/ as ImageNet calls it."""
    test = data_dir / "test"
    return test if test.is_dir() else data_dir / "val"


def read_folder(data_dir: Path, split: str) -> Table:
    """Read train/ and test/ trees, or one tree whose first half of classes is for training.

    For tests the test tree is enough.
    """
    if has_train_test(data_dir):
        return read_train_test(data_dir, split)
    files_of = list_classes(data_dir)
    num_train_classes = (len(files_of) + 1) // 2
    if not files_of and split == "test" and folder_of_tests(data_dir).is_dir():
        files_of = list_classes(folder_of_tests(data_dir))  # none of them for training
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
    files_of: dict[str, list[str]] = {}
    num_train_classes = 0
    for count, alphabet in enumerate(list_folders(root)):
        characters = list_classes(root / alphabet)
        files_of |= {f"{alphabet}/{name}": files for name, files in characters.items()}
        if count < NUM_OMNIGLOT_TRAIN_ALPHABETS:
            num_train_classes = len(files_of)
    if not files_of:
        raise FileNotFoundError(f"no images_background/ALPHABET/character/*.png in {data_dir}")
    return table_by_class(files_of, num_train_classes, split)
