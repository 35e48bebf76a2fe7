"""Compare the cost of a training step: this project, the bare step, a peer's training loop.

python -m benchmarks.speed.train --model=ResNet50 --image_size=224 --batch_size=16 --rounds=2

The methods are measured in turns, each time in a process of its own and after a warm-up; what
counts is the ratio of images per second to those of `bare` in the same run.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.common import Rounds
from benchmarks.speed.reader_ways import write_images
from benchmarks.speed.train_methods import LEAST_CLASSES, METHODS, WARM_UP, Work
from metric_learning.common.cli import user_errors
from metric_learning.common.flags import Flag, natural, parse_flags, positive

BASELINE = "bare"
MEASURED = (BASELINE, "this", "cached", "pml")
FLAGS = (
    Flag("model", str, "ResNet18", "network"),
    Flag("image_size", positive, 64, "side of the network input in pixels"),
    Flag("batch_size", positive, 64, "images per step"),
    Flag("num_steps", positive, 20, f"steps that are measured, after {WARM_UP} of warm-up"),
    Flag("size", common.height_and_width, (400, 500), "height and width of the JPEG files"),
    Flag("num_workers", natural, 2, "processes that read images"),
    Flag("rounds", positive, 2, "times that each method is measured"),
    Flag("methods", common.names_among(METHODS), MEASURED, "what is measured"),
)


def main(argv: Sequence[str] | None = None) -> Rounds:
    """Print the table in Markdown; return what each round of each method took."""
    with user_errors(), tempfile.TemporaryDirectory() as folder:
        flags = parse_flags(__doc__, FLAGS, argv)
        if flags.batch_size % LEAST_CLASSES:
            raise ValueError(
                f"--batch_size={flags.batch_size}: expected a multiple of {LEAST_CLASSES} images"
            )
        works = {}
        for name in flags.methods:
            size = flags.batch_size * METHODS[name].batches
            shape = flags.image_size, size, size // METHODS[name].num_classes
            steps = flags.num_steps + WARM_UP + 1
            works[name] = Work(flags.model, *shape, steps, flags.num_workers, folder)
        make_classes(works, flags.size)
        rounds = common.in_turns(works, flags.rounds, lambda name: measure(name, works[name]))

        conditions = (
            f"{flags.model} at {flags.image_size} px, {flags.num_steps} steps after {WARM_UP} of "
            f"warm-up, in a fresh process; {flags.rounds} rounds in turns, the best of them "
            f"counts. Synthetic JPEG files of {flags.size[1]} x {flags.size[0]} pixels, "
            f"{flags.num_workers} workers. Memory: peak beyond the imports, without workers."
        )
        jobs = {name: METHODS[name].job for name in rounds}
        notes = common.notes("train", argv, conditions, rounds, jobs)
        print(table(works, rounds), notes, sep="\n\n")
        return rounds


def make_classes(works: Mapping[str, Work], size: tuple[int, int]) -> None:
    """Draw the images of one batch of the largest method, and write their list."""
    folder = Path(next(iter(works.values())).folder)
    each = max(work.samples_each_class for work in works.values())
    lines = []
    for number in range(max(METHODS[name].num_classes for name in works)):
        own = folder / "train" / f"class_{number:03d}"
        own.mkdir(parents=True)
        write_images(own, each, size, number)
        lines += [f"{file} {number}\n" for file in sorted(own.iterdir())]
    (folder / "train.txt").write_text("".join(lines))


def measure(name: str, work: Work) -> dict[str, Any]:
    """Measure a method in a fresh process.

    Raises:
        ValueError: it fails.
    """
    module = "benchmarks.speed.train_methods"
    try:
        return common.run_apart([sys.executable, "-m", module, name, json.dumps(work)])
    except ValueError as error:
        raise ValueError(f"{name} {error}") from error


def table(works: Mapping[str, Work], rounds: Rounds) -> str:
    """Return the Markdown table: a row per method with its batch size, its best round."""
    rates = {
        name: [works[name].batch_size / each["wall_seconds"] for each in found]
        for name, found in rounds.items()
    }
    baseline = max(rates.get(BASELINE, [0]))
    rows = []
    for name, found in rounds.items():
        best, peak = max(rates[name]), max(each["peak_bytes"] for each in found)
        row = [name, f"{works[name].batch_size:,}", f"{best:.1f}"]
        row += [f"{best / baseline:.3f}" if baseline else ""]
        row += [f"{min(each['cpu_seconds'] for each in found):.2f}", f"{peak / 2**20:,.0f}"]
        rows.append([*row, ", ".join(f"{rate:.1f}" for rate in rates[name])])

    titles = ("method", "images per step", "images/s", f"times {BASELINE}", "CPU s per step")
    return common.markdown((*titles, "memory MiB", "images/s of each round"), rows)


if __name__ == "__main__":
    main()
