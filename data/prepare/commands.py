"""The commands of the preparation: each reads a folder or a list of images and writes a list."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from metric_learning.common.atomic import write_csv
from metric_learning.common.log import show
from metric_learning.common.names import to_cell, to_line
from metric_learning.common.outputs import csv_kind, prepare_output, refuse_same
from metric_learning.data.prepare.filter import (
    BROKEN,
    REPORT_COLUMNS,
    choose_removals,
    describe_removals,
    read_duplicates,
    report_rows,
)
from metric_learning.data.prepare.hashes import check_threshold
from metric_learning.data.prepare.scan import SCAN_COLUMNS, scan_again, scan_tree
from metric_learning.data.prepare.splits import (
    count_lonely,
    fold_column,
    split_by_share,
    split_by_size,
)
from metric_learning.data.prepare.ties import Ties, describe_duplicates, tie_duplicates, tie_groups
from metric_learning.reader.check import section
from metric_learning.reader.sets.csv_files import ImageList, Row, read_image_list
from metric_learning.reader.sets.left_out import REASONS

DEFAULT_TEST_SHARE = 0.3
DEFAULT_SIZES = 3, 50  # least and most images of a training class, when sizes divide

NUM_NAMED = 5  # broken images that a line names
NAMES = ("path", "label", "kept", "kept_label")  # columns that hold names of files and folders
REMOVED = csv_kind("a list of what 'filter' removed", REPORT_COLUMNS)


def scan(tree: Path, output: Path, class_levels: int, num_workers: int, max_pixels: int) -> None:
    """Describe every image of a tree."""
    rows, left_out = scan_tree(tree, class_levels, num_workers, max_pixels)
    if left_out:
        show(left_out.describe())
    broken = [f"{row['path']}: {row['broken']}" for row in rows if row["broken"]]
    show("\n".join(section("broken images", broken)))
    for reason, names in left_out.items.items():
        if names:
            show("\n".join(section(f"left out: {REASONS[reason][1]}", names)))
    write_rows(output, tuple(rows[0]), rows)
    if output.resolve().parent != tree.resolve():
        show(f"its paths are relative to {tree}: train with --data_dir={tree}")


def filter_images(
    file: Path,
    output: Path,
    report: str,
    min_size: int,
    max_size: int,
    threshold: int | None,
    duplicates: str | None,
    data_dir: str | None,
    verify: bool,
    num_workers: int,
    max_pixels: int,
) -> None:
    """Remove images, see `choose_removals`, and list them in `report` or OUTPUT_removed.csv.

    What `scan` found of files that have changed since is found out again.
    """
    if max_size and min_size > max_size:
        raise ValueError(f"--min_size={min_size} and --max_size={max_size} leave no image")
    check_threshold(threshold or 0)
    removed_file = report or str(output.with_name(f"{output.stem}_removed.csv"))
    refuse_same(output=str(output), report=removed_file, path=str(file))
    prepare_output("report", removed_file, REMOVED)

    images = read_list(file)
    folder = Path(data_dir) if data_dir else file.parent
    if BROKEN in images.columns:  # else no scan wrote it, and what comes says so
        images, line = scan_again(images, folder, num_workers, max_pixels, verify)
        if line:
            show(line)
    listed = read_duplicates(Path(duplicates), images, folder) if duplicates else []
    removals = choose_removals(images, min_size, max_size, threshold, listed)
    removed = {removal.row for removal in removals}
    rows = [row for i, row in enumerate(images.rows) if i not in removed]
    if not rows:
        raise ValueError(f"no image of {images.file} is left: allow more")

    removed_rows = report_rows(images, removals)
    for reason, lines in describe_removals(removed_rows).items():
        show("\n".join(section(reason, lines)))
    emptied = sorted({*images.labels} - {row["label"] for row in rows})
    show("\n".join(section("classes without an image left", emptied)))
    write_rows(output, images.columns, rows)
    write_rows(Path(removed_file), REPORT_COLUMNS, removed_rows)


def split(
    file: Path,
    output: Path,
    test_share: float | None,
    val_share: float | None,
    closed: bool,
    group: str | None,
    threshold: int | str | None,
    on_bad_image: str,
    random_seed: int,
    min_n_samples: int | None,
    max_n_samples: int | None,
    **columns: str | None,
) -> None:
    """Add the column split, by shares or by the sizes of the classes."""
    by_size = min_n_samples is not None or max_n_samples is not None
    shares = test_share, val_share, closed, group, threshold
    if by_size and shares != (None, None, False, None, None):
        raise ValueError(
            "--min_n_samples and --max_n_samples divide by the sizes of classes, --test_share, "
            "--val_share, --closed, --group and --threshold by shares: leave the ones or the "
            "others out"
        )

    images = read_whole_images(file, "split", columns, on_bad_image)
    if by_size:
        least = DEFAULT_SIZES[0] if min_n_samples is None else min_n_samples
        most = DEFAULT_SIZES[1] if max_n_samples is None else max_n_samples
        if most and least > most:
            raise ValueError(f"--min_n_samples={least} is above --max_n_samples={most}")
        parts = split_by_size(images.labels, least, most)
    else:
        test = DEFAULT_TEST_SHARE if test_share is None else test_share
        val = val_share or 0.0
        if test == 0 or test + val >= 1:
            raise ValueError(
                f"--test_share={test:g} --val_share={val:g}: expected a share for the test, and "
                "less than 1 together"
            )
        ties = read_ties(images, group, threshold)
        parts = split_by_share(images.labels, ties, test, val, closed, random_seed)

    remedy = "" if by_size else "another --random_seed or other shares"
    check_scorable(images, "split", parts, ("test", "val"), remedy)
    add_column(output, images, "split", parts)


def folds(
    file: Path,
    output: Path,
    k: int,
    open_set: bool,
    group: str | None,
    threshold: int | str | None,
    on_bad_image: str,
    random_seed: int,
    **columns: str | None,
) -> None:
    """Add the column fold: each fold is a test split whose training images are the others."""
    if k < 2:
        raise ValueError(f"--k={k}: expected at least 2 folds")
    images = read_whole_images(file, "fold", columns, on_bad_image)
    ties = read_ties(images, group, threshold)
    column = fold_column(images, ties, k, open_set, random_seed)
    remedy = "a lower --k" if open_set else "a lower --k or --open_set=True"
    check_scorable(images, "fold", column, [str(fold) for fold in range(k)], remedy)
    add_column(output, images, "fold", column)


def read_ties(images: ImageList, group: str | None, threshold: int | str | None) -> Ties:
    """Return what keeps images on one side, and say how many near duplicates there are."""
    copies = tie_duplicates(images, threshold)
    if copies is not None:
        line, mixed = describe_duplicates(images, copies)
        if line:
            show(line)
        if mixed:
            show("\n".join(section("near duplicates in several classes", mixed)))
    return Ties(tie_groups(images, group), copies)


def check_scorable(
    images: ImageList, column: str, cells: Sequence[str], tested: Sequence[str], remedy: str
) -> None:
    """Say how many images of each test have no other of their class.

    Raises ValueError where none has, if there is a remedy.
    """
    for value in tested:
        labels = [label for label, cell in zip(images.labels, cells, strict=True) if cell == value]
        lonely = count_lonely(labels)
        if remedy and lonely == len(labels) and value in cells:
            raise ValueError(
                f"{column} {value} would hold one image of each of its {lonely} classes, so that "
                f"no query has anything to find: give {remedy}"
            )
        if lonely:
            show(
                f"{column} {value}: {lonely:,} of {len(labels):,} images have no other of their "
                "class there: retrieval leaves them out as queries"
            )


def read_list(file: Path, given: Mapping[str, str | None] | None = None) -> ImageList:
    """Read a list, see `read_image_list`, and say what was read as the same."""
    images = read_image_list(file, given)
    if images.junk:
        show(f"left out: images of no class, label -1 or unknown ({len(images.junk)})")
    for what, count in images.unified.items():
        show(f"read as the same: {what} ({count})")
    return images


def read_whole_images(
    file: Path, column: str, columns: Mapping[str, str | None], on_bad_image: str
) -> ImageList:
    """Read a list that is to get a column, without the images that scan found broken.

    `columns` has the file's own names of columns, by the flags --path_column and --label_column.
    Raises ValueError where the list has the column, and at a broken image unless it is to `skip`.
    """
    given = {flag.removesuffix("_column"): name for flag, name in columns.items()}
    images = read_list(file, given)
    if column in images.columns:
        raise ValueError(f"{file} has a column {column} already: start from a file without it")
    if not set(SCAN_COLUMNS) <= set(images.columns):  # another's table, whose columns mean others
        return images

    broken = [i for i, row in enumerate(images.rows) if row[BROKEN]]
    if not broken:
        return images
    if on_bad_image != "skip":
        path = to_line(images.rows[broken[0]]["path"])
        images.fail(broken[0], f"{path} is broken: leave --on_bad_image={on_bad_image} out")
    whole = images.select(sorted({*range(len(images.rows))} - {*broken}))
    emptied = sorted({*images.labels} - {*whole.labels})
    show(describe_broken(images.select(broken), emptied))
    if not whole.rows:
        raise ValueError(f"every image of {file} is broken")
    return whole


def describe_broken(broken: ImageList, emptied: Sequence[str]) -> str:
    """Say in one line which broken images are left out, and which classes they empty."""
    names = [f"{row['path']}: {row[BROKEN]}" for row in broken.rows[:NUM_NAMED]]
    if len(broken.rows) > NUM_NAMED:
        names.append(f"and {len(broken.rows) - NUM_NAMED:,} more, see {broken.file}")
    classes = f", all of {len(emptied):,} classes such as {emptied[0]}" if emptied else ""
    return (
        f"left out: {len(broken.rows):,} broken images{classes} ({to_line('; '.join(names))}); "
        "--on_bad_image=error stops at them"
    )


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
    show("\n".join(section(f"values of the column {name}", lines)))
    rows = [row | {name: cell} for row, cell in zip(images.rows, cells, strict=True)]
    write_rows(output, (*images.columns, name), rows)


def write_rows(file: Path, columns: Sequence[str], rows: Sequence[Row]) -> None:
    """Write a CSV file and say so."""
    named = [name for name in NAMES if name in columns]
    cells = [row | {name: to_cell(row[name]) for name in named} for row in rows]
    write_csv(file, columns, cells)
    show(f"wrote {file}, {len(rows):,} images of {len({row['label'] for row in rows}):,} classes")
