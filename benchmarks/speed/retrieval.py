"""Compare the cost of evaluating retrieval: this project, its peers, and one matrix product.

python -m benchmarks.speed.retrieval --sizes=60502,20000 --dims=512,2048 --rounds=3

The methods are measured in turns, each time in a process of its own that has loaded the embeddings
and warmed up; what counts is the ratio of CPU seconds to those of `floor` in the same run.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import common
from benchmarks.common import Rounds
from benchmarks.speed.retrieval_methods import METHODS
from metric_learning.common.cli import user_errors
from metric_learning.common.flags import Flag, integers, natural, parse_flags, path, positive

LEAST_IMAGES = 100
CONDITIONS = (
    "rounds in turns, the best of them counts; each in a fresh process after a warm-up (imports, "
    "compilation, threads). CPU: user + system. Memory: peak, less what was held after the "
    "warm-up, embeddings included. Metrics in percent. `scaled`: only the first of the queries "
    "were searched for in all images; the time of the search (not of its preparation) was scaled "
    "up to all, memory and metrics are those of what ran. Synthetic embeddings."
)
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
    Flag("methods", common.names_among(METHODS), tuple(METHODS), "what is measured"),
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
        flags = parse_flags(__doc__, FLAGS, argv)
        if min(flags.sizes) < LEAST_IMAGES:
            raise ValueError(f"expected at least {LEAST_IMAGES} images, found {min(flags.sizes)}")
        if not Path("/proc/self/clear_refs").exists():
            raise ValueError("memory is measured by /proc/self/clear_refs: run this on Linux")
        result = common.begin(flags.json, argv, flags.values) | {"data_sets": []}
        interpreters = dict.fromkeys(flags.methods, sys.executable)
        if "oml" in interpreters:
            interpreters["oml"] = flags.oml_python
        interpreters = with_packages(interpreters)

        data_sets = result["data_sets"]
        for size in flags.sizes:
            queries = {name: num_queries(name, size, flags.share or {}) for name in interpreters}
            for dim in flags.dims:
                with tempfile.TemporaryDirectory() as folder:
                    save_embeddings(folder, size, dim, flags.seed)
                    rounds = measure(folder, interpreters, queries, flags.rounds)
                data_sets.append({"images": size, "dimensions": dim, "bytes": 4 * size * dim})
                data_sets[-1] |= {"queries": queries, "methods": rounds}
                print(table(size, dim, queries, rounds), end="\n\n", flush=True)
                common.keep(flags.json, result)
        rounds = data_sets[0]["methods"]
        jobs = {name: METHODS[name].job for name in rounds}
        used = {name: found[0].get("versions", {}) for name, found in rounds.items()}
        print(common.notes("retrieval", argv, CONDITIONS, jobs, used))
        return result


def with_packages(interpreters: Mapping[str, str]) -> dict[str, str]:
    """Return the methods, with their interpreters, whose packages are there; say which are not.

    Raises:
        ValueError: none is left.
    """
    code = "import sys, importlib.util as u; sys.exit(not all(map(u.find_spec, sys.argv[1:])))"
    left = {}
    for name, python in interpreters.items():
        if subprocess.run([python, "-c", code, *METHODS[name].packages]).returncode == 0:
            left[name] = python
        else:
            print(f"{name} is left out, to have it: {METHODS[name].install}", file=sys.stderr)
    if not left:
        raise ValueError(f"none of {', '.join(interpreters)} is installed: see above")
    return left


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


def save_embeddings(folder: str, size: int, dim: int, seed: int) -> None:
    """Write what `make_embeddings` draws to a folder; the measured processes need the memory."""
    for name, values in zip(
        ("embeddings", "labels"), make_embeddings(size, dim, seed), strict=True
    ):
        np.save(Path(folder) / f"{name}.npy", values)


def measure(
    folder: str, interpreters: Mapping[str, str], queries: Mapping[str, int], num_rounds: int
) -> Rounds:
    """Measure methods in turns on the embeddings of a folder; what each round found."""
    return common.in_turns(
        interpreters,
        num_rounds,
        lambda name: measure_apart(interpreters[name], name, folder, queries[name]),
        lambda found: found.get("failure") or f"{found['cpu_seconds']:.2f} CPU seconds",
    )


def num_queries(name: str, size: int, shares: Mapping[str, float]) -> int:
    """Return how many queries of a data set a method is measured on, by share or by default."""
    default = 1.0 if size <= WHOLE_IMAGES else METHODS[name].share or 1.0
    return max(1, round(size * shares.get(name, default)))


def measure_apart(python: str, name: str, folder: str, queries: int) -> dict[str, Any]:
    """Measure a method in a fresh process, on all cores and no GPU.

    Returns:
        The dict of `retrieval_methods.measure`, or a `failure` in words.
    """
    command = [python, "-m", "benchmarks.speed.retrieval_methods", name, folder, str(queries)]
    try:
        return common.run_apart(command, common.machine()["threads"])
    except ValueError as error:
        return {"failure": str(error)}


def table(size: int, dim: int, queries: Mapping[str, int], rounds: Rounds) -> str:
    """Return the Markdown table of N x D embeddings: a row per method, its best round."""
    floor = best(rounds["floor"], "cpu_seconds") if "floor" in rounds else None
    rows = []
    for name, found in rounds.items():
        if "failure" in found[-1]:
            rows.append([name, found[-1]["failure"].replace("|", "/"), *[""] * 7])
            continue
        is_scaled = queries[name] < size
        cpu_seconds, metrics = best(found, "cpu_seconds"), found[0]["found"]
        peak = max(each["peak_bytes"] for each in found) / 2**20

        rows.append(
            [
                name,
                f"{queries[name]:,}{', scaled' if is_scaled else ''}",
                f"{cpu_seconds:.2f}",
                f"{cpu_seconds / floor:.2f}" if floor else "",
                f"{best(found, 'wall_seconds'):.2f}",
                f"{'at least ' if is_scaled else ''}{peak:,.0f}",
                *(f"{100 * metrics[k]:.3f}" if k in metrics else "" for k in ("recall@1", "map@r")),
                ", ".join(f"{each['cpu_seconds']:.2f}" for each in found),
            ]
        )
    title = f"### {size:,} images, {dim} dimensions ({4 * size * dim / 2**20:,.0f} MiB)"
    titles = ("method", "queries", "CPU s", "times floor", "wall s", "memory MiB", "recall@1")
    return f"{title}\n\n{common.markdown((*titles, 'map@r', 'CPU s of each round'), rows)}"


def best(rounds: Sequence[Mapping[str, Any]], what: str) -> float:
    """Return the smallest value of those that did not fail."""
    return min((found[what] for found in rounds if what in found), default=0.0)


if __name__ == "__main__":
    main()
