"""CUB-200-2011, CUB-200 of 2010 and Cars196: sets whose first half of classes is for training."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from metric_learning.reader.sets.folders import flatten, list_classes
from metric_learning.reader.sets.lists import bad_line, parse_label, read_columns, read_list
from metric_learning.reader.sets.table import Table, first_classes

NUM_CUB_TRAIN_CLASSES = 100
NUM_CARS_TRAIN_CLASSES = 98


def numbered_table(
    paths: list[str], classes: np.ndarray, names: dict[int, str], num_train: int, split: str
) -> Table:
    """Table of a set whose classes are chosen by their official number, present or not."""
    return Table(
        paths,
        classes,
        names,
        in_split=first_classes(classes, num_train, split),
        class_order=np.arange(max([*names, *classes.tolist()], default=-1) + 1),
    )


def read_numbers(path: Path, expected: str) -> dict[str, int]:
    """Read `key number` lines as key -> zero-based number."""
    numbers = {}
    for line, (key, number) in read_columns(path, expected):
        if parse_label(number) < 1:
            raise bad_line(path, line, expected, f"{key} {number}")
        numbers[key] = int(number) - 1
    return numbers


def read_cub200_2011(data_dir: Path, split: str) -> Table:
    """Read images.txt, image_class_labels.txt and classes.txt; classes 1-100 are for training."""
    label_file = data_dir / "image_class_labels.txt"
    class_of = read_numbers(label_file, "image_id class_id")

    names = {}
    for line, (number, name) in read_columns(data_dir / "classes.txt", "class_id class_name"):
        if parse_label(number) < 1:
            raise bad_line(
                data_dir / "classes.txt", line, "class_id class_name", f"{number} {name}"
            )
        names[int(number) - 1] = name

    paths, classes = [], []
    for line, (image_id, path) in read_columns(data_dir / "images.txt", "image_id path"):
        if image_id not in class_of:
            raise ValueError(f"{data_dir / 'images.txt'}:{line}: {label_file} lacks {image_id}")
        paths.append(os.path.join(data_dir, "images", path))
        classes.append(class_of[image_id])

    unnamed = set(classes) - set(names)
    names |= {number: str(number + 1) for number in unnamed}
    numbers = np.array(classes, dtype=np.int64)
    return numbered_table(paths, numbers, names, NUM_CUB_TRAIN_CLASSES, split)


def read_cub200_2010(data_dir: Path, split: str) -> Table:
    """Read the first version's two lists where both are there, else images/NNN.Name/*."""
    lists = {"train": data_dir / "CUB200_train.txt", "test": data_dir / "CUB200_val.txt"}
    if all(path.is_file() for path in lists.values()):
        return read_cub200_lists(data_dir, lists, split)
    if not (data_dir / "images").is_dir():
        raise FileNotFoundError(f"no folder {data_dir / 'images'}")

    files_of = list_classes(data_dir / "images")
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
    return numbered_table(paths, classes, names, NUM_CUB_TRAIN_CLASSES, split)


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
    return Table(paths, classes, names, in_split=in_train == (split == "train"))


def read_cars196(data_dir: Path, split: str) -> Table:
    """Read cars_annos.mat or the devkit's files; classes 1-98 are for training."""
    if (data_dir / "cars_annos.mat").is_file():
        mat = read_mat(data_dir / "cars_annos.mat", "annotations", "class_names")
        annotations, names = mat["annotations"], mat["class_names"]
        paths = [os.path.join(data_dir, str(p)) for p in annotations["relative_im_path"]]
        classes = annotations["class"]
    elif (data_dir / "devkit").is_dir():
        devkit = data_dir / "devkit"
        names = read_mat(devkit / "cars_meta.mat", "class_names")["class_names"]
        train = read_mat(devkit / "cars_train_annos.mat", "annotations")["annotations"]
        test = read_mat(devkit / "cars_test_annos_withlabels.mat", "annotations")["annotations"]
        paths = [os.path.join(data_dir, "cars_train", str(p)) for p in train["fname"]]
        paths += [os.path.join(data_dir, "cars_test", str(p)) for p in test["fname"]]
        classes = np.concatenate([train["class"], test["class"]])
    else:
        raise FileNotFoundError(f"no file {data_dir / 'cars_annos.mat'} or folder devkit")

    class_names = {number: str(name) for number, name in enumerate(names)}
    numbers = classes.astype(np.int64) - 1
    return numbered_table(paths, numbers, class_names, NUM_CARS_TRAIN_CLASSES, split)


def read_mat(path: Path, *variables: str) -> dict[str, np.ndarray]:
    """Read variables of a MATLAB file as one-dimensional arrays; ValueError if it lacks them."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    from scipy.io import loadmat  # takes long to import

    try:
        mat = loadmat(path, squeeze_me=True, variable_names=variables)
    except Exception as error:  # a broken file raises many types
        raise ValueError(f"{path}: not a MATLAB file: {error}") from error
    for variable in variables:
        if variable not in mat:
            raise ValueError(f"{path}: expected the variable {variable}")
    return {variable: np.atleast_1d(mat[variable]) for variable in variables}
