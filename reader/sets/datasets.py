"""The table of data sets and `load_image_set`, the one way to open any of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from metric_learning.common.places import data_root
from metric_learning.reader.sets.cifar10 import read_cifar10
from metric_learning.reader.sets.columns import NAMED
from metric_learning.reader.sets.csv_files import read_csv, splits_of_csv
from metric_learning.reader.sets.cub_cars import read_cars196, read_cub200_2010, read_cub200_2011
from metric_learning.reader.sets.folders import (
    FOLDER_LAYOUT,
    read_folder,
    read_omniglot,
    splits_of_folder,
)
from metric_learning.reader.sets.folds import NONE, fold_rows, parse_fold
from metric_learning.reader.sets.image_set import ImageSet
from metric_learning.reader.sets.lists import read_inshop, read_list, read_sop
from metric_learning.reader.sets.locate import locate_files
from metric_learning.reader.sets.reid import read_market1501, read_veri776
from metric_learning.reader.sets.table import (
    ALL,
    SPLITS,
    TEST,
    TRAIN,
    VAL,
    Table,
    choose_rows,
    image_keys,
    join_tables,
    take,
)


@dataclass(frozen=True)
class DatasetSpec:
    """One data set."""

    folder: str | None  # default folder under data/; None: --data_dir must be given
    # (data_dir, split) -> Table; None for list and CSV files, which have no folder layout
    read: Callable[[Path, str], Table] | None
    to_get: str  # what to do when the data is missing
    classes_shared: bool = False  # whether a class may be in both splits


DEMO, SCAN = "--dataset=demo needs no data", "python -m data.prepare scan FOLDER"


def download(name: str) -> str:
    """Say how to get a set that data/download.py knows."""
    return (
        f"get it with 'python data/download.py {name}' or give --data_dir; "
        "--dataset=demo needs no download"
    )


def on_request(name: str) -> str:
    """Say how to get a set that its authors give out themselves."""
    return f"get {name} from its authors and give its folder as --data_dir; {DEMO}"


DATASETS: dict[str, DatasetSpec] = {
    "sop": DatasetSpec("Stanford_Online_Products", read_sop, download("sop")),
    "demo": DatasetSpec("demo", read_sop, "run: python data/make_demo.py"),
    "glyphs": DatasetSpec("glyphs", read_sop, "run: python data/make_glyphs.py"),
    "cub200_2011": DatasetSpec("CUB_200_2011", read_cub200_2011, download("cub200_2011")),
    "cub200_2010": DatasetSpec("CUB_200_2010", read_cub200_2010, download("cub200_2010")),
    "cars196": DatasetSpec("cars196", read_cars196, download("cars196")),
    "inshop": DatasetSpec("inshop", read_inshop, download("inshop")),
    "cifar10": DatasetSpec("cifar10", read_cifar10, download("cifar10"), classes_shared=True),
    "market1501": DatasetSpec("Market-1501-v15.09.15", read_market1501, on_request("Market-1501")),
    "veri776": DatasetSpec("VeRi", read_veri776, on_request("VeRi-776")),
    "omniglot": DatasetSpec("omniglot", read_omniglot, download("omniglot")),
    "folder": DatasetSpec(
        None, read_folder, f"expected {FOLDER_LAYOUT} in --data_dir; {DEMO}", classes_shared=True
    ),
    "list": DatasetSpec(None, None, f"expected a file of 'path label' lines; {DEMO}", True),
    "csv": DatasetSpec(None, None, f"write one with '{SCAN}'; {DEMO}", True),
}

# Options that one data set alone uses.
WITH_VAL = ("folder", "csv")
COLUMN_OPTIONS = tuple(f"{name}_column" for name in NAMED)
OWN_OPTIONS = {
    **{"train_list": "list", "test_list": "list", "csv": "csv", "fold": "csv"},
    **dict.fromkeys(COLUMN_OPTIONS, "csv"),
}


def load_image_set(
    dataset: str,
    data_dir: str | Path | None,
    split: str,
    *,
    train_classes: str | None = None,
    test_classes: str | None = None,
    train_list: str | Path | None = None,
    test_list: str | Path | None = None,
    csv: str | Path | None = None,
    fold: int | None = None,
    val_fold: str | None = None,
    **columns: str | None,
) -> ImageSet:
    """Open one split of a data set; it tells what is missing or listed twice.

    Args:
        dataset: a name of DATASETS.
        data_dir: the data set's folder; None: its default folder under data/.
        split: "train", "val" (of "folder", "csv" or a `val_fold`), "test", or "all", every image
            once and without regard to chosen classes and folds.
        train_classes: classes of the train split, e.g. "1-25" or "1-10,15", counted from 1 in the
            data set's class order, numbers by their value; None: the data set's own split.
        test_classes: the same for the test split.
        train_list: file of `path label` lines, for "list" alone.
        test_list: the same for the test split.
        csv: file of images, for "csv" alone, see `read_csv`.
        fold: its fold to test on; None: the file's own split.
        val_fold: the fold of the training images that is the val split, see `read_fold`.
        **columns: what the file calls its columns, by the names of COLUMN_OPTIONS.

    Raises:
        ValueError: unknown name, unused option, malformed list or range, or a split without images.
        FileNotFoundError: the data is not there.
    """
    options = {"train_list": train_list, "test_list": test_list, "csv": csv, "fold": fold}
    options |= dict.fromkeys(COLUMN_OPTIONS) | columns
    check_options(dataset, options)
    if split not in (*SPLITS, ALL):
        raise ValueError(f"unknown split '{split}'; expected one of {', '.join((*SPLITS, ALL))}")
    ranges = {TRAIN: train_classes, TEST: test_classes}

    with _telling_how_to_get(dataset):
        if split == ALL:
            table = read_all(dataset, data_dir, options)
        elif val_fold is None or split == TEST:
            table = read_split(dataset, data_dir, split, options, ranges)
        else:
            table = read_fold(dataset, data_dir, split, options, ranges, val_fold)
    return build_image_set(dataset, split, table, data_dir)


load_index = load_image_set  # its former name


def splits_of(dataset: str, data_dir: str | Path | None, **options: Any) -> tuple[str, ...]:
    """Return which of train, val and test a data set has; arguments as of `load_image_set`."""
    own = {name: options.get(name) for name in OWN_OPTIONS}
    check_options(dataset, own)
    with _telling_how_to_get(dataset):
        found = own_splits(dataset, data_dir, own)
    if options.get("val_fold") is None:
        return found
    has_val = options["val_fold"] != NONE
    return tuple(s for s in SPLITS if (has_val if s == VAL else s in found))


def own_splits(
    dataset: str, data_dir: str | Path | None, options: Mapping[str, Any]
) -> tuple[str, ...]:
    """Return which of train, val and test a data set has by itself; options of OWN_OPTIONS."""
    if dataset == "list":
        return tuple(split for split in (TRAIN, TEST) if options[f"{split}_list"])
    if dataset == "csv" and options["csv"]:
        return splits_of_csv(Path(options["csv"]), options["fold"], given_columns(options))
    if dataset == "folder" and data_dir:
        return splits_of_folder(existing(data_dir))
    return TRAIN, TEST


def given_columns(options: Mapping[str, Any]) -> dict[str, str | None]:
    """Return what a CSV file calls the columns of NAMED, by the options of their names."""
    return dict(zip(NAMED, (options[name] for name in COLUMN_OPTIONS), strict=True))


@contextlib.contextmanager
def _telling_how_to_get(dataset: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{dataset}: {error}; {DATASETS[dataset].to_get}") from error


def check_options(dataset: str, options: dict[str, Any]) -> None:
    """Raise ValueError for an unknown data set, or an option that it does not use."""
    if dataset not in DATASETS:
        raise ValueError(f"unknown dataset '{dataset}'; expected one of {', '.join(DATASETS)}")
    for name in options.keys() - OWN_OPTIONS:
        raise TypeError(f"{name} is no option of a data set")
    for name, user in OWN_OPTIONS.items():
        if options[name] not in (None, "") and dataset != user:
            raise ValueError(
                f"--{name} is for --dataset={user}; --dataset={dataset} does not use it"
            )


def read_split(
    dataset: str,
    data_dir: str | Path | None,
    split: str,
    options: dict[str, Any],
    ranges: Mapping[str, str | None],
) -> Table:
    """Read the images of a split: of its classes in the ranges, or the data set's own."""
    table = read_table(dataset, data_dir, split, options)
    try:
        rows, notes = choose_rows(table, split, ranges.get(split))
    except ValueError as error:
        raise ValueError(f"{dataset}: {error}") from error
    return replace(take(table, rows), notes=(*table.notes, *_told(split, notes)))


def read_fold(
    dataset: str,
    data_dir: str | Path | None,
    split: str,
    options: dict[str, Any],
    ranges: Mapping[str, str | None],
    val_fold: str,
) -> Table:
    """Read the training images outside of a fold, or those inside of it as the val split.

    The val split that the data set has itself is divided with the others. The `val_fold` is as of
    `parse_fold`; with "none" all of them are for training.
    """
    fold = parse_fold(val_fold)
    if fold is None and split == VAL:
        raise ValueError(f"--val_fold={val_fold}: nothing is held out for a val split")
    known = [name for name in own_splits(dataset, data_dir, options) if name != TEST]
    table = join_tables([read_split(dataset, data_dir, name, options, ranges) for name in known])
    if fold is None:
        return table

    try:
        rows, note = fold_rows(table, fold, split)
    except ValueError as error:
        raise ValueError(f"--val_fold={val_fold}: {error}") from error
    return replace(take(table, rows), notes=(*table.notes, *_told(split, [note])))


def _told(split: str, notes: Iterable[str]) -> list[str]:
    return [f"{split}: {note}" for note in notes]


def read_all(dataset: str, data_dir: str | Path | None, options: dict[str, Any]) -> Table:
    """Read all splits of a data set as one, each image once and under the set's own numbers."""
    if dataset == "csv":
        return read_table(dataset, data_dir, ALL, options)
    tables = []
    for split in own_splits(dataset, data_dir, options):
        table = read_table(dataset, data_dir, split, options)
        tables.append(take(table, choose_rows(table, split, None)[0]))
    if not tables:  # a list that was not given
        read_table(dataset, data_dir, TRAIN, options)
    return join_tables(tables)


def read_table(
    dataset: str, data_dir: str | Path | None, split: str, options: dict[str, Any]
) -> Table:
    """Read what a data set holds for a split; `options` are those of OWN_OPTIONS.

    Raises ValueError for a val split where there is none.
    """
    spec = DATASETS[dataset]
    if split == VAL and dataset not in WITH_VAL:
        raise ValueError(
            f"--dataset={dataset} has no val split: a CSV file has one (rows whose split is val), "
            "and a folder (val/ beside train/ and test/)"
        )
    if spec.read is not None:
        if not data_dir and spec.folder is None:
            raise ValueError(f"--dataset={dataset} needs --data_dir; {spec.to_get}")
        return spec.read(existing(data_dir or data_root() / str(spec.folder)), split)

    name = "csv" if dataset == "csv" else f"{split}_list"
    if not options[name]:
        columns = "columns path,label,..." if dataset == "csv" else "lines 'path label'"
        raise ValueError(f"--dataset={dataset} needs --{name}=FILE with {columns}")
    file = Path(options[name])
    folder = existing(data_dir or file.parent)
    if dataset == "csv":
        return read_csv(file, folder, split, options["fold"], given_columns(options))
    lists = [Path(options[other]) for other in ("train_list", "test_list") if options[other]]
    return read_list(file, folder, lists)


def existing(folder: str | Path) -> Path:
    """Return the folder as a path if it is there."""
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"no folder {folder}")
    return Path(folder)


def build_image_set(
    dataset: str, split: str, table: Table, data_dir: str | Path | None
) -> ImageSet:
    """Take a table as a split; training labels become 0..C-1 in class order.

    Listed images are looked for, and what is listed twice is noted.
    """
    present, contiguous = np.unique(table.classes, return_inverse=True)
    is_train = split == TRAIN
    numbers = dict(enumerate(present.tolist())) if is_train else {n: n for n in present.tolist()}
    super_classes = table.super_classes

    table, missing = locate(table, data_dir)
    everything = np.ones(len(table.paths), dtype=bool)
    is_query = everything if table.is_query is None else table.is_query
    is_gallery = everything if table.is_gallery is None else table.is_gallery
    changes = ", ".join(f"{what} ({count})" for what, count in table.unified.items())

    return ImageSet(
        name=dataset,
        split=split,
        paths=table.paths,
        labels=(contiguous if is_train else table.classes).astype(np.int64),
        class_names={label: table.class_names[number] for label, number in numbers.items()},
        is_query=is_query,
        is_gallery=is_gallery,
        images=table.images,
        boxes=None if table.boxes is None else np.array(table.boxes, np.int32).reshape(-1, 4),
        groups=None if is_train else table.groups,
        super_classes=super_classes
        and {label: super_classes[number] for label, number in numbers.items()},
        left_out=table.left_out,
        notes=(*table.notes, *([f"read as the same: {changes}"] if changes else [])),
        missing=missing,
        repeated=find_repeated(table),
    )


def locate(table: Table, data_dir: str | Path | None) -> tuple[Table, tuple[str, ...]]:
    """Look for listed images, see `locate_files`; return a line for each that is not there."""
    if table.places is None or table.images is not None:
        return table, ()
    paths, missing, unified = locate_files(table.paths, str(data_dir or ""))
    lines = [f"{table.places[i]}: no image {paths[i]}" for i in missing]
    if len(missing) == len(paths) and paths:
        hint = ": give the folder that the paths are relative to as --data_dir"
        lines = [line + hint for line in lines]
    unified.update(table.unified)
    return replace(table, paths=paths, unified=unified), tuple(lines)


def find_repeated(table: Table) -> tuple[str, ...]:
    """Return a line for each image that was listed before."""
    if table.places is None:
        return ()
    keys = image_keys(table)
    if len(set(keys)) == len(keys):
        return ()
    firsts: dict[Any, int] = {}
    lines = []
    for i, key in enumerate(keys):
        first = firsts.setdefault(key, i)
        if first != i:
            lines.append(f"{table.places[i]}: {key[0]} is listed in {table.places[first]} already")
    return tuple(lines)
