"""Data sets of one folder per class: any such tree, divided or not, and Omniglot."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from metric_learning.reader.sets import left_out
from metric_learning.reader.sets.left_out import LeftOut, join_left_out
from metric_learning.reader.sets.table import (
    SPLIT_NAMES,
    SPLITS,
    TEST,
    TRAIN,
    VAL,
    Table,
    first_classes,
    sort_names,
)
from metric_learning.reader.sets.walk import FOLDER, IMAGE, Walk, list_folder, walk_images

FOLDER_LAYOUT = "train/CLASS/* and test/CLASS/* (or val, valid, validation), or CLASS/*"
NUM_SHOWN = 8  # folders that an error names
NUM_OMNIGLOT_TRAIN_ALPHABETS = 20


def list_classes(root: Path, levels: int = 1) -> tuple[dict[str, list[str]], LeftOut]:
    """Return class name -> image paths, in order, and what is left out of a tree of classes."""
    return group_classes(walk_images(root), levels)


def group_classes(walk: Walk, levels: int = 1) -> tuple[dict[str, list[str]], LeftOut]:
    """Group the images of a walk by class, as `list_classes` returns them.

    A class is a folder so many `levels` below the root, with all images in it and below, or a
    folder of any level (0): "cat", or "Greek/character01". Images that lie higher are in no class.
    """
    found: dict[str, list[str]] = {}
    loose: list[str] = []
    for folder, files in walk.images.items():
        parts = folder.split("/") if folder else []
        if len(parts) >= max(levels, 1):
            found.setdefault("/".join(parts[: levels or None]), []).extend(files)
        else:
            loose += [os.path.relpath(file, walk.left_out.root) for file in files]

    used = {name.partition("/")[0] for name in (*found, *(name for name in walk.images if name))}
    empty = [name for name in walk.folders if name not in used]
    items = {**walk.left_out.items, left_out.LOOSE: loose, left_out.EMPTY: empty}
    return {name: found[name] for name in sort_names(found)}, replace(walk.left_out, items=items)


def flatten(
    files_of: dict[str, list[str]], number_of: dict[str, int]
) -> tuple[list[str], np.ndarray]:
    """Paths and class numbers of all images, class after class."""
    paths = [path for files in files_of.values() for path in files]
    numbers = [number_of[name] for name in files_of]
    counts = [len(files) for files in files_of.values()]
    return paths, np.repeat(np.array(numbers, dtype=np.int64), counts)


@dataclass(frozen=True)
class DividedTree:
    """A tree that has a folder of classes for each split, as far as they are there.

    Attributes:
        walks: split -> what lies in its folder. Where there is no test/, as in ImageNet, val/ is
            the test too.
        beside: what is left out beside these folders.
        notes: a line where val/ is the test.
    """

    walks: dict[str, Walk]
    beside: LeftOut
    notes: tuple[str, ...]

    def read(self, split: str, levels: int = 1) -> tuple[dict[str, list[str]], LeftOut]:
        """Return class name -> image paths of a split, and what is left out of the tree."""
        classes, rest = group_classes(self.walks[split], levels)
        inner = rest.below(Path(self.walks[split].left_out.root).name)
        return classes, join_left_out([inner, self.beside], self.beside.root)


def find_divided(data_dir: Path) -> DividedTree | None:
    """Return a folder as a divided tree, None if it is none.

    A folder that is called like a split counts where it holds class folders with images. One split
    alone makes a divided tree if no images lie in other folders: it could be a class. ValueError
    where these are no classes either, since all folders hold folders alone.
    """
    kinds = list_folder(data_dir)
    named: dict[str, Walk] = {}
    found: dict[str, str] = {}
    for split, wanted in SPLIT_NAMES.items():
        called = [name for word in wanted for name in kinds[FOLDER] if name.lower() == word]
        named |= {name: walk_images(data_dir / name) for name in called}
        usable = [name for name in called if named[name].has_classes]
        if usable:
            found[split] = usable[0]
    if TEST in found and VAL in found and _is_flat(named[found[TEST]], named[found[VAL]]):
        del found[TEST]

    others = [name for name in kinds[FOLDER] if name not in named]
    notes: tuple[str, ...] = ()
    if TEST not in found and VAL in found:
        found[TEST] = found[VAL]
        notes = (f"{found[TEST]}/ is the test split: no test/ holds class folders",)
    taken = set(found.values())
    if len(taken) == 1:
        walks_beside = {name: walk_images(data_dir / name) for name in others}
        full = [name for name, walk in walks_beside.items() if walk.images]
        if full and all("" not in walks_beside[name].images for name in full):
            _refuse_unknown_split(data_dir, named, taken.pop(), full[0])
        taken = set() if full else taken
    if not taken:
        return None
    unused = [walk for name, walk in named.items() if name not in taken]
    walks = {split: named[name] for split, name in found.items()}
    return DividedTree(walks, _account_beside(data_dir, kinds, others, unused), notes)


def _is_flat(test: Walk, val: Walk) -> bool:
    """Whether a test/ holds one folder, which is no class of a val/ that has several."""
    classes, known = (set(group_classes(walk)[0]) for walk in (test, val))
    return len(classes) == 1 < len(known) and not classes & known


def _refuse_unknown_split(data_dir: Path, named: dict[str, Walk], split: str, other: str) -> None:
    """Raise ValueError where folders of class folders stand beside a split, unless it is a class.

    That it is where images lie right in it.
    """
    if "" not in named[split].images:
        raise ValueError(
            f"{data_dir} holds {split}/ and {other}/, which both hold folders: rename {other}/ to "
            f"train, val or test if it is a split, or {split}/ if it is a class"
        )


def _account_beside(
    data_dir: Path, kinds: dict[str, list[str]], others: list[str], unused: list[Walk]
) -> LeftOut:
    """Account for what lies in a divided tree beside its splits; `unused` are called like one."""
    items = {reason: names for reason, names in kinds.items() if reason in left_out.REASONS}
    loose = kinds[IMAGE] + [
        os.path.relpath(file, data_dir)
        for walk in unused
        for files in walk.images.values()
        for file in files
    ]
    items |= {left_out.LOOSE: loose, left_out.BESIDE: [f"{name}/" for name in others]}
    return LeftOut(str(data_dir), items)


def read_divided(tree: DividedTree, split: str) -> Table:
    """Read a split of a divided tree; classes are those of all splits in order."""
    found = {name: tree.read(name) for name in tree.walks}
    names = sort_names(name for classes, _ in found.values() for name in classes)
    files_of, rest = found[split]
    paths, classes = flatten(files_of, {name: number for number, name in enumerate(names)})
    return Table(paths, classes, dict(enumerate(names)), left_out=rest, notes=tree.notes)


def read_folder(data_dir: Path, split: str) -> Table:
    """Read a divided tree, or a tree of classes whose first half is for training."""
    tree = find_divided(data_dir)
    if tree is None:
        files_of, rest = list_classes(data_dir)
        if len(files_of) == 1:
            refuse_outer_folder(data_dir / next(iter(files_of)))
        if files_of and split != VAL:
            table = table_by_class(files_of, (len(files_of) + 1) // 2, split)
            return replace(table, left_out=rest)
    elif split in tree.walks:
        return read_divided(tree, split)

    kinds = list_folder(data_dir)
    folders = ", ".join(f"{name}/" for name in kinds[FOLDER][:NUM_SHOWN]) or "no folder"
    what = f"no class folders with images for the {split} split in {data_dir}"
    hint = " (--test_iter_step=0 trains without a test)" if tree and split == TEST else ""
    raise FileNotFoundError(f"{what}, which holds {folders}{hint}")


def refuse_outer_folder(folder: Path) -> None:
    """Raise ValueError where the one class of a tree is the data set itself."""
    if find_divided(folder) is not None:
        raise ValueError(
            f"{folder.parent} holds one folder, {folder.name}/, which is divided into splits: give "
            f"--data_dir={folder}"
        )


def splits_of_folder(data_dir: Path) -> tuple[str, ...]:
    """Return which splits a folder has."""
    tree = find_divided(data_dir)
    if tree is None:
        return TRAIN, TEST
    own_val = tree.walks.get(VAL) is not tree.walks.get(TEST)
    return tuple(split for split in SPLITS if split in tree.walks and (own_val or split != VAL))


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
    files_of, rest = list_classes(root, levels=2)
    if not files_of:
        raise FileNotFoundError(f"no images_background/ALPHABET/character/*.png in {data_dir}")

    alphabets = [name.partition("/")[0] for name in files_of]
    for_training = sort_names(alphabets)[:NUM_OMNIGLOT_TRAIN_ALPHABETS]
    table = table_by_class(files_of, sum(a in for_training for a in alphabets), split)
    return replace(table, left_out=rest)
