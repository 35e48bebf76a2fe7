"""Compare the cost of reading training images: this project's ways, Pillow's and torchvision's.

python -m benchmarks.speed.reader --rounds=5

All ways read the same JPEG files in turns, in one process on one thread, after a warm-up; what
counts is the ratio of images per second of CPU time to those of `pillow_v1` in the same run.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import torch

from benchmarks import common
from benchmarks.common import Rounds
from benchmarks.speed.reader_ways import QUALITY, WAYS, Batches, Work, image_set_of, write_images
from metric_learning.common.cli import user_errors
from metric_learning.common.flags import Flag, natural, parse_flags, path, positive

BASELINE = "pillow_v1"
DISTRIBUTIONS = ("torch", "torchvision", "pillow", "opencv-python-headless", "numpy")
FLAGS = (
    Flag("images", positive, 200, "number of images"),
    Flag("size", common.height_and_width, (400, 500), "height and width of synthetic images"),
    Flag("data_dir", path, None, "folder of JPEG files to read instead of synthetic images"),
    Flag("batch_size", positive, 32, "images per batch"),
    Flag("crop_size", positive, 224, "side of the network input in pixels"),
    Flag("cache_size", positive, 256, "short side of the images in the cache, in pixels"),
    Flag("rounds", positive, 5, "times that each way is measured"),
    Flag("methods", common.names_among(WAYS), tuple(WAYS), "what is measured"),
    Flag("json", path, None, "file to write all values to"),
    Flag("seed", natural, 0, "of the synthetic images"),
)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Print the table in Markdown and return all values."""
    with user_errors(), tempfile.TemporaryDirectory() as folder:
        flags = parse_flags(__doc__, FLAGS, argv)
        result = common.begin(flags.json, argv, flags.values)

        if flags.data_dir is None:
            (height, width), images_dir = flags.size, folder
            write_images(Path(folder), flags.images, flags.size, flags.seed)
            kind = f"synthetic JPEG files of {width} x {height} pixels, quality {QUALITY}, seed "
            kind += f"{flags.seed}"
        else:
            flags.refuse(("size", "seed"), "it is for synthetic images, not for --data_dir")
            images_dir, kind = flags.data_dir, f"JPEG files of {flags.data_dir}"
        files = find_jpegs(images_dir, flags.images)
        num_bytes = sum(file.stat().st_size for file in files)

        image_set = image_set_of([str(file) for file in files])
        work = Work(image_set, flags.batch_size, flags.crop_size, Path(folder), flags.cache_size)
        rounds = measure(work, flags.methods, flags.rounds)
        result |= {"images": len(files), "bytes": num_bytes, "methods": rounds}
        result["versions"] = common.versions(*DISTRIBUTIONS)
        common.keep(flags.json, result)

        conditions = (
            f"{len(files)} {kind}, {num_bytes / len(files) / 1000:.0f} KB on average, to batches "
            f"of {flags.batch_size} at {flags.crop_size} pixels, normalised float32 unless said "
            f"otherwise; random resized crop and flip. {flags.rounds} rounds in turns after a "
            "warm-up, the best of them counts; one process, one thread. Cache: short side "
            f"{flags.cache_size} pixels."
        )
        jobs = {name: WAYS[name].job for name in rounds}
        used = dict.fromkeys(rounds, result["versions"])
        text = common.notes("reader", argv, conditions, jobs, used)
        print(table(len(files), rounds), text, sep="\n\n")
        return result


def find_jpegs(folder: str, most: int) -> list[Path]:
    """Return the first JPEG files at and below a folder.

    Raises:
        ValueError: there is none.
    """
    below = sorted(Path(folder).rglob("*"))
    files = [file for file in below if file.suffix.lower() in (".jpg", ".jpeg")]
    if not files:
        raise ValueError(f"--data_dir={folder}: no .jpg or .jpeg files below it")
    return files[:most]


def measure(work: Work, names: Sequence[str], num_rounds: int) -> Rounds:
    """Read all files in all ways, in turns after a warm-up; what each round took."""
    count = len(work.image_set)
    with one_thread():
        reads = {name: WAYS[name].prepare(work) for name in names}
        for read in reads.values():
            measure_once(read, count)
        return common.in_turns(
            names,
            num_rounds,
            lambda name: measure_once(reads[name], count),
            lambda found: f"{count / found['cpu_seconds']:.0f} images/s",
        )


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let torch and OpenCV compute on one thread."""
    num_threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads[0])
        cv2.setNumThreads(num_threads[1])


def measure_once(read: Callable[[], Batches], expected: int) -> dict[str, float]:
    """Read all images once: CPU and wall seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    count = sum(len(images) for images in read())
    found = {
        "cpu_seconds": time.process_time() - cpu,
        "wall_seconds": time.perf_counter() - wall,
    }
    assert count == expected
    return found


def table(count: int, rounds: Rounds) -> str:
    """Return the Markdown table: a row per way of reading `count` images, its best round."""
    rates = {
        name: [count / each["cpu_seconds"] for each in found] for name, found in rounds.items()
    }
    baseline = max(rates[BASELINE]) if BASELINE in rates else None

    rows = [
        [
            name,
            f"{max(own):.0f}",
            f"{max(own) / baseline:.2f}" if baseline else "",
            f"{max(count / each['wall_seconds'] for each in rounds[name]):.0f}",
            ", ".join(f"{rate:.0f}" for rate in own),
        ]
        for name, own in rates.items()
    ]
    titles = ("method", "images per CPU second", f"times {BASELINE}", "images per second")
    return common.markdown((*titles, "of each round"), rows)


if __name__ == "__main__":
    main()
