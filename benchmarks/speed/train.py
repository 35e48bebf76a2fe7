"""Compare the cost of a training step: this project, the bare step, a peer's training loop.

python -m benchmarks.speed.train --model=ResNet50 --image_size=224 --batch_size=16 --rounds=2

The methods are measured in turns, each time in a process of its own and after a warm-up; what
counts is the ratio of images per second to those of `bare` in the same run.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.common import Rounds
from benchmarks.speed.reader_ways import write_images
from benchmarks.speed.train_methods import LEAST_CLASSES, METHODS, WARM_UP, Work
from metric_learning.common.cli import user_errors
from metric_learning.common.flags import Flag, natural, parse_flags, path, positive

BASELINE = "bare"
MEASURED = (BASELINE, "this", "cached", "pml")
FLAGS = (
    Flag("model", str, "ResNet18", "network"),
    Flag("image_size", positive, 64, "side of the network input in pixels"),
    Flag("batch_size", positive, 64, "images per step"),
    Flag("num_steps", positive, 20, f"steps that are measured, after {WARM_UP} of warm-up"),
    Flag("size", common.height_and_width, (400, 500), "height and width of the JPEG files"),
    Flag("num_workers", natural, 2, "processes that read images"),
    Flag("device", str, "cpu", "cpu or cuda"),
    Flag("rounds", positive, 2, "times that each method is measured"),
    Flag("methods", common.names_among(METHODS), MEASURED, "what is measured"),
    Flag("json", path, None, "file to write all values to"),
    Flag("seed", natural, 0, "of the synthetic images"),
)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Print the table in Markdown and return all values."""
    with user_errors(), tempfile.TemporaryDirectory() as folder:
        flags = parse_flags(__doc__, FLAGS, argv)
        if flags.batch_size % LEAST_CLASSES:
            raise ValueError(
                f"--batch_size={flags.batch_size}: expected a multiple of {LEAST_CLASSES} images"
            )
        check_installed(flags.methods)
        result = common.begin(flags.json, argv, flags.values)

        make_work = partial(
            Work,
            model=flags.model,
            image_size=flags.image_size,
            num_steps=flags.num_steps + WARM_UP + 1,
            num_workers=flags.num_workers,
            folder=folder,
            device=flags.device,
        )
        sizes = {name: flags.batch_size * METHODS[name].batches for name in flags.methods}
        works = {
            name: make_work(batch_size=size, samples_each_class=size // METHODS[name].num_classes)
            for name, size in sizes.items()
        }
        make_classes(works, flags.size, flags.seed)
        rounds = common.in_turns(
            works,
            flags.rounds,
            lambda name: measure_apart(name, works[name]),
            lambda found: f"{found['wall_seconds']:.3f} s per step",
        )
        common.keep(flags.json, result | {"methods": rounds})

        conditions = (
            f"{flags.model} at {flags.image_size} px on {flags.device}, {flags.num_steps} steps "
            f"after {WARM_UP} of warm-up, in a fresh process; {flags.rounds} rounds in turns, the "
            f"best of them counts. Synthetic JPEG files of {flags.size[1]} x {flags.size[0]} "
            f"pixels, {flags.num_workers} workers. Memory: peak beyond the imports, without "
            "workers; on a GPU, of the device."
        )
        jobs = {name: METHODS[name].job for name in rounds}
        used = {name: found[0]["versions"] for name, found in rounds.items()}
        print(table(sizes, rounds), common.notes("train", argv, conditions, jobs, used), sep="\n\n")
        return result | {"methods": rounds}


def check_installed(methods: Iterable[str]) -> None:
    """Raise ValueError where a method needs a package that is not there."""
    for name in methods:
        package = METHODS[name].package
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"{name} needs {package}: install it, or leave out")


def make_classes(works: Mapping[str, Work], size: tuple[int, int], seed: int) -> None:
    """Draw the images of one batch of the largest method, and write their list."""
    folder = Path(next(iter(works.values())).folder)
    lines = []
    for number in range(max(METHODS[name].num_classes for name in works)):
        own = folder / "train" / f"class_{number:03d}"
        own.mkdir(parents=True)
        most = max(work.samples_each_class for work in works.values())
        write_images(own, most, size, seed + number)
        lines += [f"{file} {number}\n" for file in sorted(own.iterdir())]
    (folder / "train.txt").write_text("".join(lines))


def measure_apart(name: str, work: Work) -> dict[str, Any]:
    """Measure a method in a fresh process.

    Raises:
        ValueError: it fails.
    """
    module = "benchmarks.speed.train_methods"
    try:
        return common.run_apart([sys.executable, "-m", module, name, json.dumps(asdict(work))])
    except ValueError as error:
        raise ValueError(f"{name} {error}") from error


def table(sizes: Mapping[str, int], rounds: Rounds) -> str:
    """Return the Markdown table: a row per method with its batch size, its best round."""
    rates = {
        name: [sizes[name] / each["wall_seconds"] for each in found]
        for name, found in rounds.items()
    }
    baseline = max(rates[BASELINE]) if BASELINE in rates else None

    rows = [
        [
            name,
            f"{sizes[name]:,}",
            f"{max(rates[name]):.1f}",
            f"{max(rates[name]) / baseline:.3f}" if baseline else "",
            f"{min(each['cpu_seconds'] for each in found):.2f}",
            f"{max(each['peak_bytes'] for each in found) / 2**20:,.0f}",
            ", ".join(f"{rate:.1f}" for rate in rates[name]),
        ]
        for name, found in rounds.items()
    ]
    titles = ("method", "images per step", "images/s", f"times {BASELINE}", "CPU s per step")
    return common.markdown((*titles, "memory MiB", "images/s of each round"), rows)


if __name__ == "__main__":
    main()
