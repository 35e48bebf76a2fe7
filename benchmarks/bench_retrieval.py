"""Compare the cost of evaluating retrieval: this project, its peers, and one matrix product.

python -m benchmarks.bench_retrieval --sizes=60502,20000 --dims=512,2048 --rounds=3

The methods are measured in turns, each time in a process of its own that has loaded the embeddings
and warmed up; what counts is the ratio of CPU seconds to those of `floor` in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import machine, names_among
from benchmarks.retrieval_methods import METHODS
from metric_learning.common.cli import user_errors
from metric_learning.common.flags import Flag, Flags, integers, natural, parse_flags, path, positive

LEAST_IMAGES = 100
WHOLE_IMAGES = 5000  # up to here all queries are measured unless --share says otherwise
MEAN_CLASS_SIZE, LEAST_CLASS_SIZE, MOST_CLASS_SIZE = 5.35, 2, 12  # of Stanford Online Products
# Chosen so that Recall@1 of 60,502 images is about 0.8 at 512 and at 2048 dimensions.
NOISE, NOISE_GROWTH, NOISE_SPREAD = 0.9, 0.16, 0.5
DEFAULT_SHARES = [f"{name}={method.share}" for name, method in METHODS.items() if method.share]


def shares(text: str) -> dict[str, float]:
    """Parse `METHOD=SHARE,...`: the share of the queries that a method is measured on."""
    scalable = [name for name, method in METHODS.items() if method.share is not None]
    found = {}
    for part in text.split(","):
        name, _, number = part.partition("=")
        try:
            share = float(number)
        except ValueError:
            share = 0.0
        if name not in scalable or not 0 < share <= 1:
            raise argparse.ArgumentTypeError(
                f"expected METHOD=SHARE, a method among {', '.join(scalable)} and a share above 0 "
                f"and up to 1, found {part!r}"
            )
        found[name] = share
    return found


FLAGS = (
    Flag("sizes", integers, (60502, 20000), "numbers of images"),
    Flag("dims", integers, (512, 2048), "dimensions of the embeddings"),
    Flag("rounds", positive, 3, "times that each method is measured"),
    Flag("methods", names_among(METHODS), tuple(METHODS), "what is measured"),
    Flag(
        "share",
        shares,
        None,
        "share of the queries, as METHOD=SHARE,...; their time is scaled to all (above "
        f"{WHOLE_IMAGES} images by default {', '.join(DEFAULT_SHARES)})",
    ),
    Flag("oml_python", path, sys.executable, "interpreter that has open-metric-learning"),
    Flag("json", path, None, "file to write all values to"),
    Flag("seed", natural, 0, "of the embeddings"),
)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Print the tables in Markdown and return all values."""
    with user_errors():
        args = parse_flags(__doc__, FLAGS, argv)
        if min(args.sizes) < LEAST_IMAGES:
            raise ValueError(f"expected at least {LEAST_IMAGES} images, found {min(args.sizes)}")
        if not Path("/proc/self/clear_refs").exists():
            raise ValueError("memory is measured by /proc/self/clear_refs: run this on Linux")
        if args.json:
            open(args.json, "a").close()  # a path that cannot be written is an error at once
        methods = installed_methods(args)
        result: dict[str, Any] = {
            "command": shlex.join(sys.argv[1:] if argv is None else argv),
            "arguments": vars(args),
            "machine": machine(),
            "data_sets": [],
        }
        for size in args.sizes:
            for dim in args.dims:
                data_set = measure_data_set(args, methods, size, dim)
                result["data_sets"].append(data_set)
                print(table(data_set), end="\n\n", flush=True)
                if args.json:
                    Path(args.json).write_text(json.dumps(result, indent=2) + "\n")
        print(notes(result))
        return result


def installed_methods(args: Flags) -> list[str]:
    """Return the methods of the flags whose packages are there; say which are not.

    Raises:
        ValueError: none is left.
    """
    code = "import sys, importlib.util as u; sys.exit(not all(map(u.find_spec, sys.argv[1:])))"
    left = []
    for name in args.methods:
        command = [interpreter(args, name), "-c", code, *METHODS[name].packages]
        if subprocess.run(command).returncode == 0:
            left.append(name)
        else:
            print(f"{name} is left out, to have it: {METHODS[name].install}", file=sys.stderr)
    if not left:
        raise ValueError(f"none of {', '.join(args.methods)} is installed: see above")
    return left


def interpreter(args: Flags, name: str) -> str:
    """Return the Python interpreter that runs a method."""
    return args.oml_python if name == "oml" else sys.executable


def make_embeddings(size: int, dim: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw embeddings like those of Stanford Online Products.

    A class is a centre and noise around it, stronger in some images than in others; the deviations
    of both fall as i^-0.5 over the dimensions. Classes have 2 to 12 images (the last one at most
    13), 5.35 on average, in shuffled order.

    Args:
        size: N, at least 2.
        dim: D.
        seed: of the random numbers.

    Returns:
        embeddings (N, D) float32, not normalised, and labels (N,) int64, none of them alone.
    """
    rng = np.random.default_rng(seed)
    spread = MOST_CLASS_SIZE - LEAST_CLASS_SIZE
    chance = (MEAN_CLASS_SIZE - LEAST_CLASS_SIZE) / spread
    class_sizes = LEAST_CLASS_SIZE + rng.binomial(spread, chance, size // LEAST_CLASS_SIZE)
    labels = np.repeat(np.arange(len(class_sizes)), class_sizes)[:size]
    labels[-1] = labels[-2]  # else the cut might leave it alone
    labels = rng.permutation(labels)
    spectrum = np.arange(1, dim + 1, dtype=np.float32) ** -0.5
    centres = rng.standard_normal((labels.max() + 1, dim), np.float32) * spectrum
    strength = np.exp(NOISE_SPREAD * rng.standard_normal((size, 1), np.float32))
    strength *= NOISE * (dim / 512) ** NOISE_GROWTH
    embeddings = rng.standard_normal((size, dim), np.float32)
    embeddings *= spectrum * strength
    embeddings += centres[labels]
    return embeddings, labels


def measure_data_set(args: Flags, methods: Sequence[str], size: int, dim: int) -> dict[str, Any]:
    """Measure the methods in turns on embeddings of one size; return what each round found."""
    embeddings, labels = make_embeddings(size, dim, args.seed)
    rows: dict[str, dict[str, Any]] = {
        name: {"queries": num_queries(args, name, size), "rounds": []} for name in methods
    }
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "embeddings.npy", embeddings)
        np.save(Path(folder) / "labels.npy", labels)
        num_bytes = embeddings.nbytes
        del embeddings  # the measured processes may need the memory
        for turn in range(args.rounds):
            for name, row in rows.items():
                if "failure" in row:
                    continue
                found = measure_apart(interpreter(args, name), name, folder, row["queries"])
                if "failure" in found:
                    row |= found
                else:
                    row["rounds"].append(found)
                outcome = found.get("failure") or f"{found['cpu_seconds']:.2f} CPU seconds"
                print(f"{size} x {dim}, round {turn + 1}, {name}: {outcome}", file=sys.stderr)
    return {"images": size, "dimensions": dim, "bytes": num_bytes, "methods": rows}


def num_queries(args: Flags, name: str, size: int) -> int:
    """Return how many queries of a data set a method is measured on."""
    default = 1.0 if size <= WHOLE_IMAGES else METHODS[name].share or 1.0
    return max(1, round(size * (args.share or {}).get(name, default)))


def measure_apart(python: str, name: str, folder: str, queries: int) -> dict[str, Any]:
    """Measure a method in a fresh process, on all cores and no GPU.

    Returns:
        The dict of `retrieval_methods.measure`, or a `failure` in words.
    """
    env = {key: value for key, value in os.environ.items() if not key.endswith("_NUM_THREADS")}
    env |= {"OMP_NUM_THREADS": str(machine()["threads"]), "CUDA_VISIBLE_DEVICES": ""}
    command = [python, "-m", "benchmarks.retrieval_methods", name, folder, str(queries)]
    env["PYTHONPATH"] = str(Path(__file__).resolve().parent.parent)
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode != 0:
        reason = (done.stderr.strip() or "no message").splitlines()[-1]
        return {"failure": f"failed with exit status {done.returncode}: {reason[:200]}"}
    return json.loads(done.stdout.splitlines()[-1])


def table(data_set: dict[str, Any]) -> str:
    """Return the Markdown table of one data set: a row per method, its best round."""
    size, dim, rows = data_set["images"], data_set["dimensions"], data_set["methods"]
    lines = [
        f"### {size:,} images, {dim} dimensions ({data_set['bytes'] / 2**20:,.0f} MiB)",
        "",
        "| method | queries | CPU s | times floor | wall s | memory MiB | recall@1 | map@r "
        "| CPU s of each round |",
        "|---|" + "--:|" * 7 + "---|",
    ]
    floor = _best(rows["floor"], "cpu_seconds") if "floor" in rows else None
    for name, row in rows.items():
        if "failure" in row:
            cells = [row["failure"].replace("|", "/")] + [""] * 7
        else:
            cells = _cells(row, floor, is_scaled=row["queries"] < size)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cells(row: dict[str, Any], floor: float | None, is_scaled: bool) -> list[str]:
    cpu_seconds = _best(row, "cpu_seconds")
    peak = max(found["peak_bytes"] for found in row["rounds"]) / 2**20
    metrics = row["rounds"][0]["found"]
    return [
        f"{row['queries']:,}{', scaled' if is_scaled else ''}",
        f"{cpu_seconds:.2f}",
        f"{cpu_seconds / floor:.2f}" if floor else "",
        f"{_best(row, 'wall_seconds'):.2f}",
        f"{'at least ' if is_scaled else ''}{peak:,.0f}",
        *(f"{100 * metrics[key]:.3f}" if key in metrics else "" for key in ("recall@1", "map@r")),
        ", ".join(f"{found['cpu_seconds']:.2f}" for found in row["rounds"]),
    ]


def _best(row: dict[str, Any], what: str) -> float:
    return min((found[what] for found in row["rounds"]), default=0.0)


def notes(result: dict[str, Any]) -> str:
    """Return what is to be read with the tables: conditions, machine, versions, jobs."""
    args, computer = result["arguments"], result["machine"]
    names = result["data_sets"][0]["methods"]
    lines = [
        f"`python -m benchmarks.bench_retrieval {result['command']}`: {args['rounds']} rounds in "
        "turns, the best of them counts; each in a fresh process after a warm-up (imports, "
        "compilation, threads). CPU: user + system. Memory: peak, less what was held after the "
        "warm-up, embeddings included. Metrics in percent. `scaled`: only the first of the queries "
        "were searched for in all images; the time of the search (not of its preparation) was "
        "scaled up to all queries, memory and metrics are those of what ran.",
        "",
        f"{computer['cpu']}, {computer['threads']} threads, {computer['system']}. Synthetic "
        f"embeddings, seed {args['seed']}.",
        "",
        *(f"- `{name}`: {METHODS[name].job}." for name in names),
    ]
    users: dict[str, list[str]] = {}
    for name, row in names.items():
        for found in row["rounds"][:1]:
            described = ", ".join(f"{what} {which}" for what, which in found["versions"].items())
            users.setdefault(described, []).append(name)
    lines += ["", *(f"Versions of {', '.join(who)}: {what}." for what, who in users.items())]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
