"""Compare the cost of reading training images: this project's ways, Pillow's and torchvision's.

python -m benchmarks.bench_reader --rounds=5

All ways read the same JPEG files in turns, in one process on one thread, after a warm-up; what
counts is the ratio of images per second of CPU time to those of `pillow_v1` in the same run.
"""

from __future__ import annotations

import json
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import machine, names_among
from benchmarks.reader_paths import QUALITY, WAYS, Batches, Work, index_of, write_images
from metric_learning.common.cli import user_errors
from metric_learning.common.flags import Flag, Flags, integers, natural, parse_flags, path, positive

BASELINE = "pillow_v1"
DISTRIBUTIONS = ("torch", "torchvision", "pillow", "opencv-python-headless", "numpy")
FLAGS = (
    Flag("images", positive, 200, "number of images"),
    Flag("size", integers, (400, 500), "height and width of the synthetic images in pixels"),
    Flag("data_dir", path, None, "folder of JPEG files to read instead of synthetic images"),
    Flag("batch_size", positive, 32, "images per batch"),
    Flag("crop_size", positive, 224, "side of the network input in pixels"),
    Flag("cache_size", positive, 256, "short side of the images in the cache, in pixels"),
    Flag("rounds", positive, 5, "times that each way is measured"),
    Flag("methods", names_among(WAYS), tuple(WAYS), "what is measured"),
    Flag("json", path, None, "file to write all values to"),
    Flag("seed", natural, 0, "of the synthetic images"),
)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Print the table in Markdown and return all values."""
    with user_errors(), tempfile.TemporaryDirectory() as folder:
        args = parse_flags(__doc__, FLAGS, argv)
        if len(args.size) != 2:
            raise ValueError(f"expected --size=HEIGHT,WIDTH, found {len(args.size)} numbers")
        if args.json:
            open(args.json, "a").close()  # a path that cannot be written is an error at once
        files = find_images(args, Path(folder))
        result = {
            "command": shlex.join(sys.argv[1:] if argv is None else argv),
            "arguments": vars(args),
            "machine": machine(),
            "versions": {"python": platform.python_version()}
            | {name: version(name) for name in DISTRIBUTIONS},
            "images": len(files),
            "bytes": sum(file.stat().st_size for file in files),
            "methods": measure(args, files, Path(folder)),
        }
        print(table(result), notes(result), sep="\n\n")
        if args.json:
            Path(args.json).write_text(json.dumps(result, indent=2) + "\n")
        return result


def find_images(args: Flags, folder: Path) -> list[Path]:
    """Return the JPEG files to read, synthetic ones unless --data_dir names a folder.

    Raises:
        ValueError: there is no JPEG file, or a flag is not used.
    """
    if args.data_dir is None:
        write_images(folder, args.images, args.size, args.seed)
        return sorted(folder.glob("*.jpg"))
    unused = [f"--{name}" for name in ("size", "seed") if name in args.given]
    if unused:
        raise ValueError(f"{', '.join(unused)} is for synthetic images: leave out --data_dir or it")
    files = [
        file
        for file in sorted(Path(args.data_dir).rglob("*"))
        if file.suffix.lower() in (".jpg", ".jpeg")
    ]
    if not files:
        raise ValueError(f"--data_dir={args.data_dir}: no .jpg or .jpeg files below it")
    return files[: args.images]


def measure(args: Flags, files: Sequence[Path], folder: Path) -> dict[str, list[dict]]:
    """Read all files in all ways, in turns, on one thread; per way what each round took."""
    index = index_of([str(file) for file in files])
    work = Work(index, args.batch_size, args.crop_size, folder, args.cache_size)
    num_threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    try:
        reads = {name: WAYS[name].prepare(work) for name in args.methods}
        rounds: dict[str, list[dict]] = {name: [] for name in reads}
        for turn in range(args.rounds + 1):
            for name, read in reads.items():
                found = measure_once(read, len(files))
                if turn:  # the first one warms up
                    rounds[name].append(found)
                    rate = len(files) / found["cpu_seconds"]
                    print(f"round {turn}, {name}: {rate:.0f} images/s", file=sys.stderr)
    finally:
        torch.set_num_threads(num_threads[0])
        cv2.setNumThreads(num_threads[1])
    return rounds


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


def table(result: dict[str, Any]) -> str:
    """Return the Markdown table: a row per way, its best round."""
    rows, count = result["methods"], result["images"]
    lines = [
        "| method | images per CPU second | times pillow_v1 | images per second | of each round |",
        "|---|--:|--:|--:|---|",
    ]
    rates = {
        name: [count / found["cpu_seconds"] for found in rounds] for name, rounds in rows.items()
    }
    baseline = max(rates[BASELINE]) if BASELINE in rates else None
    for name, of_rounds in rates.items():
        best = max(of_rounds)
        wall = max(count / found["wall_seconds"] for found in rows[name])
        ratio = f"{best / baseline:.2f}" if baseline else ""
        each = ", ".join(f"{rate:.0f}" for rate in of_rounds)
        lines.append(f"| {name} | {best:.0f} | {ratio} | {wall:.0f} | {each} |")
    return "\n".join(lines)


def notes(result: dict[str, Any]) -> str:
    """Return what is to be read with the table: images, conditions, machine, versions."""
    args, computer = result["arguments"], result["machine"]
    kind = (
        f"JPEG files of {args['data_dir']}"
        if args["data_dir"]
        else f"synthetic JPEG files of {args['size'][1]} x {args['size'][0]} pixels, quality "
        f"{QUALITY}, seed {args['seed']}"
    )
    lines = [
        f"`python -m benchmarks.bench_reader {result['command']}`: {result['images']} {kind}, "
        f"{result['bytes'] / result['images'] / 1000:.0f} KB on average, to batches of "
        f"{args['batch_size']} at {args['crop_size']} pixels, normalised float32 unless said "
        f"otherwise; random resized crop and flip. {args['rounds']} rounds in turns after a "
        "warm-up, the best of them counts; one process, one thread. Cache: short side "
        f"{args['cache_size']} pixels.",
        "",
        f"{computer['cpu']}, {computer['threads']} threads, {computer['system']}.",
        "",
        *(f"- `{name}`: {WAYS[name].job}." for name in result["methods"]),
        "",
        f"Versions: {', '.join(f'{name} {which}' for name, which in result['versions'].items())}.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
