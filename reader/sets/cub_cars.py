"""CUB-200-2011, CUB-200 of 2010 and Cars196: sets whose first half of classes is for training."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from metric_learning.reader.sets.folders import flatten, list_classes
from metric_learning.reader.sets.lists import bad_line, parse_label, read_columns, read_list
from metric_learning.reader.sets.read_mat import read_mat
from metric_learning.reader.sets.table import TRAIN, Table, first_classes
from metric_learning.reader.sets.text import unify_integers
from metric_learning.reader.sets.walk import walk_images

NUM_CUB_TRAIN_CLASSES = 100
NUM_CARS_TRAIN_CLASSES = 98
DEVKIT = ("cars_meta.mat", "cars_train_annos.mat", "cars_test_annos_withlabels.mat")


def numbered_table(
    paths: list[str], classes: np.ndarray, names: dict[int, str], num_train: int, split: str
) -> Table:
    """Table of a set whose classes are chosen by their official number, present or not."""
    return Table(
        paths,
        classes,
        names,
        in_split=first_classes(classes, num_train, split),
        num_classes=max([*names, *classes.tolist()], default=-1) + 1,
    )


def read_keys(path: Path, expected: str) -> dict[str, tuple[int, str]]:
    """Read `key text` lines as key -> (line number, text); ValueError where a key comes twice."""
    found: dict[str, tuple[int, str]] = {}
    for line, (key, text) in read_columns(path, expected):
        key = unify_integers(key)
        if key in found:
            raise ValueError(f"{path}:{line}: {key} stands in line {found[key][0]} already")
        found[key] = line, unify_integers(text)
    return found


def read_cub200_2011(data_dir: Path, split: str) -> Table:
    """Read images.txt, image_class_labels.txt and classes.txt; classes 1-100 are for training."""
    label_file, image_file = data_dir / "image_class_labels.txt", data_dir / "images.txt"
    class_of = {}
    for image_id, (line, number) in read_keys(label_file, "image_id class_id").items():
        if parse_label(number) < 1:
            raise bad_line(label_file, line, "image_id class_id", f"{image_id} {number}")
        class_of[image_id] = int(number) - 1

    names = {}
    for number, (line, name) in read_keys(data_dir / "classes.txt", "class_id class_name").items():
        if parse_label(number) < 1:
            raise bad_line(
                data_dir / "classes.txt", line, "class_id class_name", f"{number} {name}"
            )
        names[int(number) - 1] = name

    paths, classes, places = [], [], []
    for image_id, (line, path) in read_keys(image_file, "image_id path").items():
        if image_id not in class_of:
            raise ValueError(f"{image_file}:{line}: {label_file} lacks {image_id}")
        paths.append(os.path.join(data_dir, "images", path))
        classes.append(class_of[image_id])
        places.append(f"{image_file}:{line}")

    names |= {number: str(number + 1) for number in set(classes) - set(names)}
    numbers = np.array(classes, dtype=np.int64)
    table = numbered_table(paths, numbers, names, NUM_CUB_TRAIN_CLASSES, split)
    return replace(table, places=places)


def read_cub200_2010(data_dir: Path, split: str) -> Table:
    """Read the first version's two lists where both are there, else images/NNN.Name/*."""
    lists = {"train": data_dir / "CUB200_train.txt", "test": data_dir / "CUB200_val.txt"}
    if all(path.is_file() for path in lists.values()):
        return read_cub200_lists(data_dir, lists, split)
    if not (data_dir / "images").is_dir():
        raise FileNotFoundError(f"no folder {data_dir / 'images'}")

    files_of, rest = list_classes(data_dir / "images")
    number_of = {}
    for name in files_of:
        number = parse_label(name.partition(".")[0])
        if number < 1:
            raise ValueError(
                f"{data_dir / 'images' / name}: expected a name such as 001.Black_footed_Albatross"
            )
        number_of[name] = number - 1

    paths, classes = flatten(files_of, number_of)
    names = {number: name for name, number in number_of.items()}
    table = numbered_table(paths, classes, names, NUM_CUB_TRAIN_CLASSES, split)
    return replace(table, left_out=rest)


def read_cub200_lists(data_dir: Path, lists: dict[str, Path], split: str) -> Table:
    """Read the first version's lists; paths are relative to data_dir or to its parent."""
    tables = {}
    for name, path in lists.items():
        table = read_list(path, data_dir)
        if table.paths and not os.path.exists(table.paths[0]):
            in_parent = read_list(path, data_dir.parent)
            table = in_parent if os.path.exists(in_parent.paths[0]) else table
        tables[name] = table

    train, test = tables["train"], tables["test"]
    in_train = np.arange(len(train.paths) + len(test.paths)) < len(train.paths)
    paths = train.paths + test.paths
    classes = np.concatenate([train.classes, test.classes])
    names = {
        number: os.path.basename(os.path.dirname(path))
        for number, path in zip(classes.tolist(), paths, strict=True)
    }
    return Table(
        paths,
        classes,
        names,
        in_split=in_train == (split == TRAIN),
        places=[place for table in (train, test) for place in table.places or []],
    )


def read_cars196(data_dir: Path, split: str) -> Table:
    """Read what circulates of Stanford Cars; classes 1-98 are for training.

    A complete devkit with its images wins: cars_meta.mat, cars_train_annos.mat and
    cars_test_annos_withlabels.mat (there or beside it), and the images in cars_train/ and
    cars_test/, or in folders of the same names in these. Else cars_annos.mat tells.
    """
    for root in (data_dir, data_dir / "stanford_cars"):
        devkit = find_devkit(root)
        if devkit is not None:
            return read_devkit(root, devkit, split)
        if (root / "cars_annos.mat").is_file():
            return read_pooled_cars(root, split)
    raise FileNotFoundError(
        f"no file {data_dir / 'cars_annos.mat'}, and no complete devkit/ "
        f"({', '.join(DEVKIT)}) with cars_train/ and cars_test/"
    )


def find_devkit(root: Path) -> dict[str, Path] | None:
    """Return the files of DEVKIT where they all are, and the folders of their images."""
    found = {}
    for name in DEVKIT:
        places = [root / "devkit", root / "car_devkit" / "devkit", root]
        files = [place / name for place in places if (place / name).is_file()]
        if not files:
            return None
        found[name] = files[0]
    for name in ("cars_train", "cars_test"):
        folders = [root / name / name, root / name]
        found[name] = next((folder for folder in folders if folder.is_dir()), root)
    return None if root in found.values() else found


def read_devkit(root: Path, devkit: dict[str, Path], split: str) -> Table:
    """Read the devkit's files, whose training and test images are numbered apart."""
    names = read_mat(devkit[DEVKIT[0]], "class_names")["class_names"]
    paths, numbers = [], []
    for file, folder in zip(DEVKIT[1:], ("cars_train", "cars_test"), strict=True):
        annotations = read_annotations(devkit[file], "fname")["annotations"]
        paths += [os.path.join(devkit[folder], name) for name in annotations["fname"]]
        numbers += annotations["class"]
    return table_of_cars(paths, numbers, names, split, root / "devkit")


def read_pooled_cars(root: Path, split: str) -> Table:
    """Read cars_annos.mat, which numbers all images together."""
    file = root / "cars_annos.mat"
    found = read_annotations(file, "relative_im_path", "class_names")
    annotations, names = found["annotations"], found["class_names"]
    paths = [os.path.join(root, path) for path in annotations["relative_im_path"]]
    if not any(map(os.path.exists, paths[:1] + paths[-1:])):
        paths = find_pooled(root, annotations["relative_im_path"], annotations.get("test"))
    return table_of_cars(paths, annotations["class"], names, split, file)


def find_pooled(root: Path, names: list[str], is_test: list[int] | None) -> list[str]:
    """Find images of cars_annos.mat in cars_train/ and cars_test/, where Kaggle's copy has them.

    Images of their own names are taken, else those of their numbers (00001.jpg for 000001.jpg),
    in the folder that the annotation tells. FileNotFoundError where not every name has an image of
    its own: Stanford's own train and test images are numbered anew, and would get wrong classes.
    """
    files: dict[tuple[bool, str], str] = {}
    for name in ("cars_train", "cars_test"):
        folder = root / name / name if (root / name / name).is_dir() else root / name
        for found in walk_images(folder).images.get("", []) if folder.is_dir() else ():
            stem = os.path.splitext(os.path.basename(found))[0]
            for key in {os.path.basename(found), stem.lstrip("0")}:
                files[name == "cars_test", key] = found

    paths = []
    for i, name in enumerate(names):
        base = os.path.basename(name)
        sides = (False, True) if is_test is None else (bool(is_test[i]),)
        keys = (base, os.path.splitext(base)[0].lstrip("0"))
        paths += [files[side, key] for key in keys for side in sides if (side, key) in files][:1]
    if len(set(paths)) < len(names):
        raise FileNotFoundError(
            f"no images of cars_annos.mat in {root}: it numbers the images of car_ims/, and those "
            f"of cars_train/ and cars_test/ are numbered anew; put {', '.join(DEVKIT)} into "
            f"{root / 'devkit'}"
        )
    return paths


def read_annotations(path: Path, field: str, *others: str) -> dict[str, Any]:
    """Read the annotations of cars, whose file names are in a field, and other variables.

    Raises ValueError where they are not of this form.
    """
    variables = read_mat(path, "annotations", *others)
    found = variables["annotations"]
    if not isinstance(found, dict) or not {field, "class"} <= set(found):
        raise ValueError(f"{path}: expected annotations with the fields {field} and class")
    if not all(isinstance(number, int) and 1 <= number < 10**18 for number in found["class"]):
        raise ValueError(f"{path}: expected classes from 1 on")
    return variables | {"annotations": found | {field: [*map(str, found[field])]}}


def table_of_cars(
    paths: list[str], numbers: list[int], names: list[str], split: str, file: Path
) -> Table:
    """Table of cars of official class numbers from 1."""
    class_names = {number: str(name) for number, name in enumerate(names)}
    unnamed = {number - 1: str(number) for number in numbers if number - 1 not in class_names}
    classes = np.array(numbers, dtype=np.int64) - 1
    table = numbered_table(paths, classes, class_names | unnamed, NUM_CARS_TRAIN_CLASSES, split)
    return replace(table, places=[f"{file}, image {i}" for i in range(1, len(paths) + 1)])
