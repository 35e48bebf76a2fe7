"""Reads every image of a data set and reports what is wrong: python -m reader.check."""

from __future__ import annotations

import hashlib
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from metric_learning.common.atomic import write_json
from metric_learning.common.cli import refuse_torchrun, user_errors
from metric_learning.common.flags import Flag, natural, parse_flags, positive
from metric_learning.common.flags import path as parse_path
from metric_learning.common.log import show
from metric_learning.common.names import to_line
from metric_learning.common.outputs import json_kind, prepare_output
from metric_learning.reader.sets.datasets import (
    COLUMN_OPTIONS,
    DATASETS,
    load_image_set,
    splits_of,
)
from metric_learning.reader.sets.describe import describe_choice
from metric_learning.reader.sets.image_files import DEFAULT_WORKERS, map_files, read_content
from metric_learning.reader.sets.image_set import AS_REFERENCE, MAX_PIXELS, Decoding, ImageSet
from metric_learning.reader.sets.left_out import REASONS, join_left_out
from metric_learning.reader.sets.table import SPLITS

NUM_SHOWN = 20
REPORT = json_kind("a report of reader.check", "dataset", "splits", "problems")
SET_OPTIONS = (
    *("train_classes", "test_classes", "train_list", "test_list", "csv", "fold", "val_fold"),
    *COLUMN_OPTIONS,
)
FLAGS = (
    Flag("dataset", str, "sop", f"one of {', '.join(DATASETS)}"),
    Flag("data_dir", parse_path, None, "its folder; default: its folder under data/"),
    Flag("train_classes", str, None, "classes to train on, e.g. 1-25 or 1-10,15"),
    Flag("test_classes", str, None, "classes to test on, e.g. 26-50"),
    Flag("train_list", parse_path, None, "file of 'path label' lines, for --dataset=list"),
    Flag("test_list", parse_path, None, "file of 'path label' lines, for --dataset=list"),
    Flag("csv", parse_path, None, "CSV file of images, for --dataset=csv"),
    Flag("fold", int, None, "its fold to test on, for --dataset=csv"),
    *(
        Flag(name, str, None, f"its {name.replace('_', ' of ')}s, for --dataset=csv")
        for name in COLUMN_OPTIONS
    ),
    Flag("val_fold", str, None, "fold of the training images that is the val split, e.g. 0/5"),
    Flag("num_workers", natural, DEFAULT_WORKERS, "processes that read; 0: this one alone"),
    Flag("max_pixels", positive, MAX_PIXELS, "most pixels of an image, in millions"),
    Flag("json", parse_path, None, "also write the whole report to this file"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Check a data set; 0: clean, 1: problems were found."""
    with user_errors():
        flags = parse_flags(__doc__, FLAGS, argv, prog="python -m reader.check")
        refuse_torchrun()
        if flags.json is not None:
            prepare_output("json", flags.json, REPORT)

        options = {name: getattr(flags, name) for name in SET_OPTIONS}
        found = splits_of(flags.dataset, flags.data_dir, **options) or SPLITS
        image_sets = [
            load_image_set(flags.dataset, flags.data_dir, split, **options) for split in found
        ]
        report = check(image_sets, flags.num_workers, Decoding(max_pixels=flags.max_pixels))
        if flags.json is not None:  # before the screen, which may be a pipe that nobody reads
            write_json(Path(flags.json), report)
        show(format_report(report))
    return 1 if report["problems"] else 0


def check_file(path: str, decoding: Decoding) -> tuple[str, str, str]:
    """Read one image file: (sha256 or "", "ok" | "broken" | "missing", reason)."""
    content = read_content(path, decoding)
    digest = "" if content.data is None else hashlib.sha256(content.data).hexdigest()
    return digest, content.state, content.reason


def check_images(
    image_sets: Sequence[ImageSet], num_workers: int, decoding: Decoding
) -> dict[str, dict[str, tuple[str, str, str]]]:
    """Check the images of all splits; split -> path -> what `check_file` says."""
    paths = dict.fromkeys(
        p for image_set in image_sets if image_set.images is None for p in image_set.paths
    )
    read = partial(check_file, decoding=decoding)
    found = map_files(read, list(paths), num_workers) if paths else []
    of_file = dict(zip(paths, found, strict=True))

    checks = {}
    for image_set in image_sets:
        if image_set.images is None:
            checks[image_set.split] = {path: of_file[path] for path in image_set.paths}
        else:
            hashes = (hashlib.sha256(image.tobytes()).hexdigest() for image in image_set.images)
            checks[image_set.split] = {
                path: (digest, "ok", "")
                for path, digest in zip(image_set.paths, hashes, strict=True)
            }
    return checks


def describe_split(image_set: ImageSet) -> dict[str, int | float]:
    """Counts of images and classes and the distribution of class sizes."""
    sizes = np.unique(image_set.labels, return_counts=True)[1]
    return {
        "images": len(image_set),
        "classes": image_set.num_classes,
        "min_class_size": int(sizes.min()),
        "median_class_size": float(np.median(sizes)),
        "max_class_size": int(sizes.max()),
        "one_image_classes": int((sizes == 1).sum()),
        "queries": int(image_set.is_query.sum()),
        "gallery": int(image_set.is_gallery.sum()),
    }


def find_duplicates(checks: dict[str, dict[str, tuple[str, str, str]]]) -> list[list[str]]:
    """Groups of two or more different paths whose files hold the same bytes."""
    paths_of: dict[str, dict[str, None]] = defaultdict(dict)
    for of_path in checks.values():
        for path, (digest, _, _) in of_path.items():
            if digest:
                paths_of[digest][path] = None
    return [list(paths) for paths in paths_of.values() if len(paths) > 1]


def check(
    image_sets: Sequence[ImageSet], num_workers: int, decoding: Decoding = AS_REFERENCE
) -> dict[str, Any]:
    """Read all images of the splits; the report as written to --json."""
    start = time.perf_counter()
    checks = check_images(image_sets, num_workers, decoding)

    split_of: dict[str, list[str]] = defaultdict(list)
    bad: dict[str, dict[str, str]] = {"broken": {}, "missing": {}}
    for split, of_path in checks.items():
        for path, (_, state, reason) in of_path.items():
            split_of[path].append(split)
            if state != "ok":
                bad[state][path] = reason

    names = [name for image_set in image_sets for name in set(image_set.class_names.values())]
    counts = Counter(names)
    report = {
        "dataset": image_sets[0].name,
        "splits": {image_set.split: describe_split(image_set) for image_set in image_sets},
        **bad,
        "duplicates": [
            [{"path": path, "splits": split_of[path]} for path in group]
            for group in find_duplicates(checks)
        ],
        "repeated": {
            image_set.split: [path for path, n in Counter(image_set.paths).items() if n > 1]
            for image_set in image_sets
        },
        "left_out": join_left_out([image_set.left_out for image_set in image_sets]).items,
        "notes": list(dict.fromkeys(n for each in image_sets for n in describe_choice(each))),
        "paths_in_both_splits": [path for path, splits in split_of.items() if len(splits) > 1],
        "classes_in_both_splits": sorted(name for name, n in counts.items() if n > 1),
        "classes_may_be_shared": DATASETS[image_sets[0].name].classes_shared,
        "seconds": round(time.perf_counter() - start, 1),
    }
    return report | {"problems": count_problems(report)}


def count_problems(report: dict[str, Any]) -> int:
    """Number of findings; classes in both splits count where the splits should be disjoint."""
    shared = 0 if report["classes_may_be_shared"] else len(report["classes_in_both_splits"])
    listed = ("broken", "missing", "duplicates", "paths_in_both_splits")
    return (
        sum(len(report[name]) for name in listed)
        + sum(len(paths) for paths in report["repeated"].values())
        + shared
    )


def format_report(report: dict[str, Any]) -> str:
    """Lay the report out for a terminal."""
    lines = [
        report["dataset"],
        "",
        f"{'split':<8}{'images':>10}{'classes':>10}{'images per class':>26}"
        f"{'one-image classes':>20}",
        f"{'':<28}{'min / median / max':>26}",
    ]

    for split, counts in report["splits"].items():
        sizes = " / ".join(
            f"{counts[f'{kind}_class_size']:,g}" for kind in ("min", "median", "max")
        )
        lines.append(
            f"{split:<8}{counts['images']:>10,}{counts['classes']:>10,}{sizes:>26}"
            f"{counts['one_image_classes']:>20,}"
        )
        if not counts["images"] == counts["queries"] == counts["gallery"]:
            lines.append(f"{'':<8}{counts['queries']:,} queries, {counts['gallery']:,} in gallery")

    lines += ["", *report["notes"]]
    lines += section("broken files", [f"{p}: {reason}" for p, reason in report["broken"].items()])
    lines += section("missing files", list(report["missing"]))

    groups = [
        " = ".join(f"{file['path']} ({', '.join(file['splits'])})" for file in group)
        for group in report["duplicates"]
    ]
    lines += section("duplicate files (same bytes)", groups)

    for split, paths in report["repeated"].items():
        lines += section(f"listed twice in {split}", paths)
    lines += section("files in both splits", report["paths_in_both_splits"])
    for reason, names in report["left_out"].items():
        if names:
            lines += section(f"left out: {REASONS[reason][1]}", names)
    allowed = " (allowed)" if report["classes_may_be_shared"] else ""
    lines += section(f"classes in both splits{allowed}", report["classes_in_both_splits"])

    problems = report["problems"]
    verdict = "clean" if problems == 0 else f"{problems:,} problem{'s' if problems > 1 else ''}"
    return "\n".join([*lines, "", f"{verdict}; read in {report['seconds']:.1f} s"])


def section(title: str, items: list[str]) -> list[str]:
    """One line with a count, then the first items."""
    shown = [f"  {to_line(item)}" for item in items[:NUM_SHOWN]]
    if len(items) > NUM_SHOWN:
        shown.append(f"  and {len(items) - NUM_SHOWN:,} more")
    return [f"{title:<36}{len(items):>8,}", *shown]


if __name__ == "__main__":
    sys.exit(main())
