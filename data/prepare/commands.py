"""The commands of data/prepare.py: each reads a folder or a list of images and writes a list."""

from __future__ import annotations

import csv
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from metric_learning.common.atomic import write_atomically
from metric_learning.common.outputs import prepare_output
from metric_learning.data.prepare.filter import (
    REPORT_COLUMNS,
    choose_removals,
    describe_removals,
    report_rows,
)
from metric_learning.data.prepare.hashes import HASH_BITS
from metric_learning.data.prepare.scan import list_ignored, scan_tree
from metric_learning.data.prepare.splits import fold_column, split_classes
from metric_learning.reader.check import section
from metric_learning.reader.sets.csv_files import ImageList, Row, read_image_list


def scan(args: Namespace, output: Path) -> None:
    """Describe every image of a tree."""
    tree = Path(args.path)
    rows = scan_tree(tree, args.num_workers)
    broken = [f"{row['path']}: {row['broken']}" for row in rows if row["broken"]]
    print("\n".join(section("broken images", broken)))
    print("\n".join(section("left out, in no class folder", list_ignored(tree))))
    write_rows(output, tuple(rows[0]), rows)
    if output.resolve().parent != tree.resolve():
        print(f"its paths are relative to {tree}: train with --data_dir={tree}")


def filter_images(args: Namespace, output: Path) -> None:
    """Remove images, and report which and why."""
    if args.max_size and args.min_size > args.max_size:
        raise ValueError(
            f"--min_size={args.min_size} and --max_size={args.max_size} leave no image"
        )
    if (args.threshold or 0) > HASH_BITS // 2:
        raise ValueError(
            f"--threshold={args.threshold}: unrelated images differ by about {HASH_BITS // 2} of "
            f"{HASH_BITS} bits; expected less, such as 4"
        )
    report = prepare_output(
        "report", args.report or str(output.with_name(f"{output.stem}_removed.csv"))
    )
    if report == output:
        raise ValueError(f"--report={report}: expected another file than --output")
    images = read_image_list(Path(args.path))
    removals = choose_removals(images, args.min_size, args.max_size, args.threshold)
    removed = {removal.row for removal in removals}
    rows = [row for i, row in enumerate(images.rows) if i not in removed]
    if not rows:
        raise ValueError(f"no image of {images.file} is left: allow more")
    removed_rows = report_rows(images, removals)
    for reason, lines in describe_removals(removed_rows).items():
        print("\n".join(section(reason, lines)))
    emptied = sorted({*images.labels} - {row["label"] for row in rows})
    print("\n".join(section("classes without an image left", emptied)))
    write_rows(output, images.columns, rows)
    write_rows(report, REPORT_COLUMNS, removed_rows)


def split(args: Namespace, output: Path) -> None:
    """Add the column split: classes of some sizes are trained on, the others tested on."""
    if args.max_n_samples and args.min_n_samples > args.max_n_samples:
        raise ValueError(
            f"--min_n_samples={args.min_n_samples} is above --max_n_samples={args.max_n_samples}"
        )
    images = read_whole_images(Path(args.path), "split")
    parts = split_classes(images.labels, args.min_n_samples, args.max_n_samples)
    add_column(output, images, "split", parts)


def folds(args: Namespace, output: Path) -> None:
    """Add the column fold: each fold is a test split whose training images are the others."""
    if args.k < 2:
        raise ValueError(f"--k={args.k}: expected at least 2 folds")
    images = read_whole_images(Path(args.path), "fold")
    column = fold_column(images, args.k, args.open_set, args.random_seed)
    add_column(output, images, "fold", column)


def read_whole_images(file: Path, column: str) -> ImageList:
    """Read a list that is to get a column.

    Raises:
        ValueError: it has the column already, or holds broken images.
    """
    images = read_image_list(file)
    if column in images.columns:
        raise ValueError(f"{file} has a column {column} already: start from a file without it")
    for i, row in enumerate(images.rows):
        if row.get("broken"):
            images.fail(i, f"{row['path']} is broken: run 'python -m data.prepare filter {file}'")
    return images


def add_column(output: Path, images: ImageList, name: str, cells: Sequence[str]) -> None:
    """Write a list with one more column, and say what each of its values holds."""
    labels: dict[str, list[str]] = {}
    for cell, label in zip(cells, images.labels, strict=True):
        labels.setdefault(cell, []).append(label)
    lines = []
    for cell in sorted(labels, key=lambda cell: (len(cell), cell)):  # 10 comes behind 9
        sizes = Counter(labels[cell]).values()
        lines.append(
            f"{cell or 'none'}: {len(labels[cell]):,} images of {len(sizes):,} classes, "
            f"{min(sizes):,} to {max(sizes):,} of each"
        )
    print("\n".join(section(f"values of the column {name}", lines)))
    rows = [row | {name: cell} for row, cell in zip(images.rows, cells, strict=True)]
    write_rows(output, (*images.columns, name), rows)


def write_rows(file: Path, columns: Sequence[str], rows: Sequence[Row]) -> None:
    """Write a CSV file and say so."""

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", newline="") as opened:
            writer = csv.DictWriter(opened, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    write_atomically(file, write)
    print(f"wrote {file}, {len(rows):,} images of {len({row['label'] for row in rows}):,} classes")
