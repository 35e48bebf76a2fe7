"""Compare the cost of reading training images: this project's ways, Pillow's and torchvision's.

python -m benchmarks.speed.reader --rounds=5

All ways read the same JPEG files in turns, in one process on one thread, after a warm-up; what
counts is the ratio of images per second of CPU time to those of `pillow_v1` in the same run.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import torch

from benchmarks import common
from benchmarks.common import Rounds
from benchmarks.speed.reader_ways import QUALITY, WAYS, Batches, Work, image_set_of, write_images
from metric_learning.common.cli import user_errors
from metric_learning.common.flags import Flag, parse_flags, positive

BASELINE = "pillow_v1"
CACHE_SIZE = 256  # short side of the images in the cache, in pixels
FLAGS = (
    Flag("images", positive, 200, "number of images"),
    Flag("size", common.height_and_width, (400, 500), "height and width of the images"),
    Flag("batch_size", positive, 32, "images per batch"),
    Flag("crop_size", positive, 224, "side of the network input in pixels"),
    Flag("rounds", positive, 5, "times that each way is measured"),
    Flag("methods", common.names_among(WAYS), tuple(WAYS), "what is measured"),
)


def main(argv: Sequence[str] | None = None) -> Rounds:
    """Print the table in Markdown; return what each round of each way took."""
    with user_errors(), tempfile.TemporaryDirectory() as folder:
        flags = parse_flags(__doc__, FLAGS, argv)
        write_images(Path(folder), flags.images, flags.size, seed=0)
        files = sorted(Path(folder).iterdir())
        kilobytes = sum(file.stat().st_size for file in files) / len(files) / 1000
        image_set = image_set_of([str(file) for file in files])
        work = Work(image_set, flags.batch_size, flags.crop_size, Path(folder), CACHE_SIZE)
        rounds = measure(work, flags.methods, flags.rounds)

        conditions = (
            f"{len(files)} synthetic JPEG files of {flags.size[1]} x {flags.size[0]} pixels, "
            f"quality {QUALITY}, {kilobytes:.0f} KB on average, to batches of {flags.batch_size} "
            f"at {flags.crop_size} pixels, normalised float32 unless said otherwise; random "
            f"resized crop and flip. {flags.rounds} rounds in turns after a warm-up, the best of "
            f"them counts; one process, one thread. Cache: short side {CACHE_SIZE} pixels."
        )
        jobs = {name: WAYS[name].job for name in rounds}
        notes = common.notes("reader", argv, conditions, rounds, jobs)
        print(table(len(files), rounds), notes, sep="\n\n")
        return rounds


def measure(work: Work, names: Sequence[str], num_rounds: int) -> Rounds:
    """Read all files in all ways, in turns on one thread; what each round took."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    try:
        reads = {name: WAYS[name].prepare(work) for name in names}
        for read in reads.values():
            measure_once(read)  # warms up
        return common.in_turns(names, num_rounds, lambda name: measure_once(reads[name]))
    finally:
        torch.set_num_threads(num_threads)


def measure_once(read: Callable[[], Batches]) -> dict[str, float]:
    """Read all images once: CPU and wall seconds."""
    start = common.clocks()
    for _ in read():
        pass
    return common.seconds_of(common.clocks() - start)


def table(count: int, rounds: Rounds) -> str:
    """Return the Markdown table: a row per way of reading `count` images, its best round."""
    cpu, wall = (
        {name: [count / each[what] for each in found] for name, found in rounds.items()}
        for what in ("cpu_seconds", "wall_seconds")
    )
    baseline = max(cpu.get(BASELINE, [0]))
    rows = [
        [name, f"{max(rates):.0f}", f"{max(rates) / baseline:.2f}" if baseline else ""]
        + [f"{max(wall[name]):.0f}", ", ".join(f"{rate:.0f}" for rate in rates)]
        for name, rates in cpu.items()
    ]
    titles = ("method", "images per CPU second", f"times {BASELINE}", "images per second")
    return common.markdown((*titles, "of each round"), rows)


if __name__ == "__main__":
    main()
