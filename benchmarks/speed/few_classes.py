"""Compare the cost of exact ranks for few large classes with that for classes of about 5 images.

OMP_NUM_THREADS=1 python -m benchmarks.speed.few_classes --sizes=50000,20000 --dims=512,64

The embeddings are the same; only the labels differ: those of Stanford Online Products' sizes, and
the same ones modulo the number of classes. What counts is the ratio of CPU seconds in one run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import common
from benchmarks.common import Rounds
from benchmarks.speed.retrieval import make_embeddings
from metric_learning.common.cli import user_errors
from metric_learning.common.flags import Flag, integers, parse_flags, positive
from metric_learning.retrieval.ranks import iterate_ranks

SMALL = "small classes"
WARM_UP = 2000  # images
CONDITIONS = (
    "rounds in turns in one process after a warm-up, the best of them counts; CPU: user + system, "
    "of the exact ranks of all positives. `random`: normal numbers, `classes`: those of "
    "`benchmarks.speed.retrieval`, centres and noise of small classes."
)
FLAGS = (
    Flag("sizes", integers, (50000, 20000), "numbers of images, one per number of `dims`"),
    Flag("dims", integers, (512, 64), "dimensions of the embeddings"),
    Flag("classes", integers, (10, 2), "numbers of large classes"),
    Flag("rounds", positive, 1, "times that each is measured"),
)


def main(argv: Sequence[str] | None = None) -> list[Rounds]:
    """Print a table per data set in Markdown; return what the rounds found, by data set."""
    with user_errors():
        flags = parse_flags(__doc__, FLAGS, argv)
        data_sets = []
        for size, dim in common.size_pairs(flags.sizes, flags.dims):
            for kind in ("random", "classes"):
                data_sets.append(measure(kind, size, dim, flags.classes, flags.rounds))
                print(f"### {kind}, {size:,} images, {dim} dimensions\n")
                print(table(data_sets[-1]), end="\n\n", flush=True)
        print(common.notes("few_classes", argv, CONDITIONS, data_sets[0]))
        return data_sets


def measure(kind: str, size: int, dim: int, classes: Sequence[int], num_rounds: int) -> Rounds:
    """Rank N x D embeddings with small classes and with so many large ones, in turns."""
    embeddings, labels = make_embeddings(size, dim)
    if kind == "random":
        embeddings = np.random.default_rng(0).standard_normal((size, dim), np.float32)
    labelings = {SMALL: labels} | {f"{number} classes": labels % number for number in classes}

    def rank(name: str) -> dict[str, Any]:
        started = common.clocks()
        for _ in iterate_ranks(embeddings, labelings[name], None, labelings[name]):
            pass
        return common.seconds_of(common.clocks() - started)

    for of_images in labelings.values():  # compiles
        for _ in iterate_ranks(
            embeddings[:WARM_UP], of_images[:WARM_UP], None, of_images[:WARM_UP]
        ):
            pass
    return common.in_turns(labelings, num_rounds, rank)


def table(rounds: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Return the Markdown table of a data set: a row per set of labels, its best round."""
    cpu = {name: min(each["cpu_seconds"] for each in found) for name, found in rounds.items()}
    rows = [
        [name, f"{seconds:.2f}", f"{seconds / cpu[SMALL]:.2f}"] for name, seconds in cpu.items()
    ]
    return common.markdown(("labels", "CPU s", "times small classes"), rows)


if __name__ == "__main__":
    main()
