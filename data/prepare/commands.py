"""The commands of the preparation: each reads a folder or a list of images and writes a list."""

from __future__ import annotations

import csv
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


def scan(tree: Path, output: Path, num_workers: int, max_pixels: int) -> None:
    """Describe every image of a tree."""
    rows = scan_tree(tree, num_workers, max_pixels)
    broken = [f"{row['path']}: {row['broken']}" for row in rows if row["broken"]]
    print("\n".join(section("broken images", broken)))
    print("\n".join(section("left out, in no class folder", list_ignored(tree))))
    write_rows(output, tuple(rows[0]), rows)
    if output.resolve().parent != tree.resolve():
        print(f"its paths are relative to {tree}: train with --data_dir={tree}")


def filter_images(
    file: Path, output: Path, report: str, min_size: int, max_size: int, threshold: int | None
) -> None:
    """Remove images, see `choose_removals`, and list them in `report` or OUTPUT_removed.csv."""
    if max_size and min_size > max_size:
        raise ValueError(f"--min_size={min_size} and --max_size={max_size} leave no image")
    if (threshold or 0) > HASH_BITS // 2:
        raise ValueError(
            f"--threshold={threshold}: unrelated images differ by about {HASH_BITS // 2} of "
            f"{HASH_BITS} bits; expected less, such as 4"
        )
    removed_file = report or str(output.with_name(f"{output.stem}_removed.csv"))
    if prepare_output("report", removed_file) == output:
        raise ValueError(f"--report={removed_file}: expected another file than --output")

    images = read_image_list(file)
    removals = choose_removals(images, min_size, max_size, threshold)
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
    write_rows(Path(removed_file), REPORT_COLUMNS, removed_rows)


def split(file: Path, output: Path, min_n_samples: int, max_n_samples: int) -> None:
    """Add the column split: classes of some sizes are trained on, the others tested on."""
    if max_n_samples and min_n_samples > max_n_samples:
        raise ValueError(
            f"--min_n_samples={min_n_samples} is above --max_n_samples={max_n_samples}"
        )
    images = read_whole_images(file, "split")
    parts = split_classes(images.labels, min_n_samples, max_n_samples)
    add_column(output, images, "split", parts)


def folds(file: Path, output: Path, k: int, open_set: bool, random_seed: int) -> None:
    """Add the column fold: each fold is a test split whose training images are the others."""
    if k < 2:
        raise ValueError(f"--k={k}: expected at least 2 folds")
    images = read_whole_images(file, "fold")
    add_column(output, images, "fold", fold_column(images, k, open_set, random_seed))


def read_whole_images(file: Path, column: str) -> ImageList:
    """Read a list that is to get a column; ValueError where it has it, or has broken images."""
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
