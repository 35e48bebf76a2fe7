"""Compare the cost of a training step: this project, the bare step, a peer's training loop.

python -m benchmarks.bench_train --model=ResNet50 --image_size=224 --batch_size=16 --rounds=2

The methods are measured in turns, each time in a process of its own and after a warm-up; what
counts is the ratio of images per second to those of `bare` in the same run.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import machine, names_among
from benchmarks.reader_paths import write_images
from benchmarks.train_methods import METHODS, WARM_UP, Work
from metric_learning.common.cli import user_errors
from metric_learning.common.flags import Flag, Flags, integers, natural, parse_flags, path, positive

BASELINE = "bare"
FLAGS = (
    Flag("model", str, "ResNet18", "network"),
    Flag("image_size", positive, 64, "side of the network input in pixels"),
    Flag("batch_size", positive, 64, "images per step"),
    Flag("num_steps", positive, 20, f"steps that are measured, after {WARM_UP} of warm-up"),
    Flag("size", integers, (400, 500), "height and width of the JPEG files in pixels"),
    Flag("num_workers", natural, 2, "processes that read images"),
    Flag("device", str, "cpu", "cpu or cuda"),
    Flag("rounds", positive, 2, "times that each method is measured"),
    Flag("methods", names_among(METHODS), ("bare", "this", "cached", "pml"), "what is measured"),
    Flag("json", path, None, "file to write all values to"),
    Flag("seed", natural, 0, "of the synthetic images"),
)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Print the table in Markdown and return all values."""
    with user_errors(), tempfile.TemporaryDirectory() as folder:
        args = parse_flags(__doc__, FLAGS, argv)
        if len(args.size) != 2:
            raise ValueError(f"expected --size=HEIGHT,WIDTH, found {len(args.size)} numbers")
        if args.batch_size % 8:
            raise ValueError(f"--batch_size={args.batch_size}: expected a multiple of 8 images")
        for name in args.methods:
            if importlib.util.find_spec(METHODS[name].package) is None:
                raise ValueError(f"{name} needs {METHODS[name].package}: install it, or leave out")
        if args.json:
            open(args.json, "a").close()  # a path that cannot be written is an error at once
        make_classes(args, Path(folder))
        rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in args.methods}
        for turn in range(args.rounds):
            for name in args.methods:
                rounds[name].append(measure_apart(args, name, folder))
                seconds = rounds[name][-1]["wall_seconds"]
                print(f"round {turn + 1}, {name}: {seconds:.3f} s per step", file=sys.stderr)
        result = {
            "command": shlex.join(sys.argv[1:] if argv is None else argv),
            "arguments": vars(args),
            "machine": machine(),
            "methods": rounds,
        }
        print(table(result), notes(result), sep="\n\n")
        if args.json:
            Path(args.json).write_text(json.dumps(result, indent=2) + "\n")
        return result


def make_classes(args: Flags, folder: Path) -> None:
    """Draw the images of one batch of the largest method, and write their list."""
    lines = []
    for number in range(num_classes(args)):
        own = folder / "train" / f"class_{number:03d}"
        own.mkdir(parents=True)
        write_images(own, samples_each_class(args), args.size, args.seed + number)
        lines += [f"{file} {number}\n" for file in sorted(own.iterdir())]
    (folder / "train.txt").write_text("".join(lines))


def num_classes(args: Flags) -> int:
    """Return how many classes the largest batch has: 8 of a plain one."""
    return 8 * max(1, *(METHODS[name].batches // 4 for name in args.methods))


def samples_each_class(args: Flags) -> int:
    """Return how many images of each class there are, and are in the largest batch."""
    largest = max(METHODS[name].batches for name in args.methods) * args.batch_size
    return largest // num_classes(args)


def measure_apart(args: Flags, name: str, folder: str) -> dict[str, Any]:
    """Measure a method in a fresh process.

    Raises:
        ValueError: it fails.
    """
    batches = METHODS[name].batches
    work = Work(
        model=args.model,
        image_size=args.image_size,
        batch_size=args.batch_size * batches,
        samples_each_class=samples_each_class(args) if batches > 1 else args.batch_size // 8,
        num_steps=args.num_steps + WARM_UP + 1,
        num_workers=args.num_workers,
        folder=folder,
        device=args.device,
    )
    command = [sys.executable, "-m", "benchmarks.train_methods", name, json.dumps(asdict(work))]
    root = str(Path(__file__).resolve().parent.parent)
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": root}, capture_output=True, text=True
    )
    if done.returncode != 0:
        reason = (done.stderr.strip() or "no message").splitlines()[-1]
        raise ValueError(f"{name} failed with exit status {done.returncode}: {reason[:200]}")
    return json.loads(done.stdout.splitlines()[-1])


def table(result: dict[str, Any]) -> str:
    """Return the Markdown table: a row per method, its best round."""
    size = result["arguments"]["batch_size"]
    rates = {
        name: [size * METHODS[name].batches / found["wall_seconds"] for found in rounds]
        for name, rounds in result["methods"].items()
    }
    baseline = max(rates[BASELINE]) if BASELINE in rates else None
    lines = [
        "| method | images per step | images/s | times bare | CPU s per step | memory MiB "
        "| images/s of each round |",
        "|---|" + "--:|" * 5 + "---|",
    ]
    for name, rounds in result["methods"].items():
        cells = [
            f"{size * METHODS[name].batches:,}",
            f"{max(rates[name]):.1f}",
            f"{max(rates[name]) / baseline:.3f}" if baseline else "",
            f"{min(found['cpu_seconds'] for found in rounds):.2f}",
            f"{max(found['peak_bytes'] for found in rounds) / 2**20:,.0f}",
            ", ".join(f"{rate:.1f}" for rate in rates[name]),
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def notes(result: dict[str, Any]) -> str:
    """Return what is to be read with the table: conditions, machine, versions, jobs."""
    args, computer = result["arguments"], result["machine"]
    versions: dict[str, str] = {}
    for rounds in result["methods"].values():
        versions |= rounds[0]["versions"]
    lines = [
        f"`python -m benchmarks.bench_train {result['command']}`: {args['model']} at "
        f"{args['image_size']} px on {args['device']}, {args['num_steps']} steps after "
        f"{WARM_UP} of warm-up, in a fresh process; {args['rounds']} rounds in turns, the best of "
        f"them counts. Synthetic JPEG files of {args['size'][1]} x {args['size'][0]} pixels, "
        f"{args['num_workers']} workers. Memory: peak beyond the imports, without workers; on a "
        "GPU, of the device.",
        "",
        f"{computer['cpu']}, {computer['threads']} threads, {computer['system']}.",
        "",
        *(f"- `{name}`: {METHODS[name].job}." for name in result["methods"]),
        "",
        f"Versions: {', '.join(f'{name} {which}' for name, which in versions.items())}.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
