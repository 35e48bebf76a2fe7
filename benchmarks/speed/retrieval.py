"""Compare the cost of evaluating retrieval: this project, its peers, and one matrix product.

python -m benchmarks.speed.retrieval --sizes=60502,20000 --dims=512,2048 --rounds=3

The methods are measured in turns, each time in a process of its own that has loaded the embeddings
and warmed up; what counts is the ratio of CPU seconds to those of `floor` in the same run.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import common
from benchmarks.common import Rounds
from benchmarks.speed.retrieval_methods import METHODS
from metric_learning.common.cli import user_errors
from metric_learning.common.flags import Flag, integers, parse_flags, path, positive

CONDITIONS = (
    "rounds in turns, the best of them counts; each in a fresh process after a warm-up (imports, "
    "compilation, threads). CPU: user + system. Memory: peak, less what was held after the "
    "warm-up, embeddings included. Metrics in percent. `scaled`: only the first of the queries "
    "were searched for in all images; the time of the search (not of its preparation) was scaled "
    "up to all, memory and metrics are those of what ran. Synthetic embeddings."
)
WHOLE_IMAGES = 5000  # up to here all queries are measured by all methods
MEAN_CLASS_SIZE, LEAST_CLASS_SIZE, MOST_CLASS_SIZE = 5.35, 2, 12  # of Stanford Online Products
# Chosen so that Recall@1 of 60,502 images is about 0.8 at 512 and at 2048 dimensions.
NOISE, NOISE_GROWTH, NOISE_SPREAD = 0.9, 0.16, 0.5
FLAGS = (
    Flag("sizes", integers, (60502, 20000), "numbers of images"),
    Flag("dims", integers, (512, 2048), "dimensions of the embeddings"),
    Flag("rounds", positive, 3, "times that each method is measured"),
    Flag("methods", common.names_among(METHODS), tuple(METHODS), "what is measured"),
    Flag("oml_python", path, sys.executable, "interpreter that has open-metric-learning"),
)


def main(argv: Sequence[str] | None = None) -> list[Rounds]:
    """Print the tables in Markdown; return what the rounds found, by data set."""
    with user_errors():
        flags = parse_flags(__doc__, FLAGS, argv)
        open(flags.oml_python).close()  # a mistyped one is an error at once
        data_sets = []
        for size in flags.sizes:
            queries = {name: num_queries(name, size) for name in flags.methods}
            for dim in flags.dims:
                data_sets.append(measure(size, dim, queries, flags.rounds, flags.oml_python))
                print(table(size, dim, queries, data_sets[-1]), end="\n\n", flush=True)
        jobs = {name: METHODS[name].prepare.__doc__ for name in flags.methods}
        print(common.notes("retrieval", argv, CONDITIONS, data_sets[0], jobs))
        return data_sets


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


def measure(
    size: int, dim: int, queries: Mapping[str, int], num_rounds: int, oml_python: str
) -> Rounds:
    """Measure methods in turns on N x D embeddings, each on so many queries."""
    with tempfile.TemporaryDirectory() as folder:
        embeddings, labels = make_embeddings(size, dim)
        np.save(f"{folder}/embeddings.npy", embeddings)
        np.save(f"{folder}/labels.npy", labels)
        del embeddings, labels  # the measured processes need the memory

        def apart(name: str) -> dict[str, Any]:
            python = oml_python if name == "oml" else sys.executable
            return measure_apart(python, name, folder, queries[name])

        return common.in_turns(queries, num_rounds, apart)


def num_queries(name: str, size: int) -> int:
    """Return how many queries of a data set a method is measured on."""
    return max(1, round(size * METHODS[name].share)) if size > WHOLE_IMAGES else size


def measure_apart(python: str, name: str, folder: str, queries: int) -> dict[str, Any]:
    """Measure a method in a fresh process, on all cores and no GPU."""
    command = [python, "-m", "benchmarks.speed.retrieval_methods", name, folder, str(queries)]
    try:
        return common.run_apart(command, common.num_threads())
    except ValueError as error:
        return {"failure": str(error)}


def table(size: int, dim: int, queries: Mapping[str, int], rounds: Rounds) -> str:
    """Return the Markdown table of N x D embeddings: a row per method, its best round."""
    floor = min((each["cpu_seconds"] for each in rounds.get("floor", [])), default=None)
    rows = []
    for name, found in rounds.items():
        if "failure" in found[-1]:
            rows.append([name, found[-1]["failure"].replace("|", "/"), *[""] * 7])
            continue
        is_scaled, metrics = queries[name] < size, found[0]["found"]
        cpu, wall = (min(each[f"{what}_seconds"] for each in found) for what in ("cpu", "wall"))
        peak = max(each["peak_bytes"] for each in found) / 2**20

        row = [name, f"{queries[name]:,}{', scaled' if is_scaled else ''}", f"{cpu:.2f}"]
        row += [f"{cpu / floor:.2f}" if floor else "", f"{wall:.2f}"]
        row += [f"{'at least ' if is_scaled else ''}{peak:,.0f}"]
        row += [f"{100 * metrics[k]:.3f}" if k in metrics else "" for k in ("recall@1", "map@r")]
        rows.append([*row, common.values_of(found, "cpu_seconds", 2)])

    title = f"### {size:,} images, {dim} dimensions ({4 * size * dim / 2**20:,.0f} MiB)"
    titles = ("method", "queries", "CPU s", "times floor", "wall s", "memory MiB", "recall@1")
    return f"{title}\n\n{common.markdown((*titles, 'map@r', 'CPU s of each round'), rows)}"


if __name__ == "__main__":
    main()
