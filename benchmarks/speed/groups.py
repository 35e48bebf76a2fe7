"""Compare the cost of exact ranks where images have groups with that where they have none.

OMP_NUM_THREADS=1 python -m benchmarks.speed.groups --sizes=60502 --dims=512 --groups=6

The embeddings and labels are the same; with groups, as those of Market-1501's cameras, images of a
query's own class and group are left out of its ranking. What counts is the ratio of CPU seconds in
one run.
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
from metric_learning.retrieval import evaluate

NONE = "no groups"
WARM_UP = 2000  # images
CONDITIONS = (
    "rounds in turns in one process after a warm-up, the best of them counts; CPU: user + system, "
    "of `retrieval.evaluate` with K = 1..1000. Embeddings and labels are those of "
    "`benchmarks.speed.retrieval`; groups are drawn at random."
)
FLAGS = (
    Flag("sizes", integers, (60502,), "numbers of images, one per number of `dims`"),
    Flag("dims", integers, (512,), "dimensions of the embeddings"),
    Flag("groups", integers, (6,), "numbers of groups"),
    Flag("rounds", positive, 1, "times that each is measured"),
)


def main(argv: Sequence[str] | None = None) -> list[Rounds]:
    """Print a table per data set in Markdown; return what the rounds found, by data set."""
    with user_errors():
        flags = parse_flags(__doc__, FLAGS, argv)
        data_sets = []
        for size, dim in common.size_pairs(flags.sizes, flags.dims):
            data_sets.append(measure(size, dim, flags.groups, flags.rounds))
            print(f"### {size:,} images, {dim} dimensions\n")
            print(table(data_sets[-1]), end="\n\n", flush=True)
        print(common.notes("groups", argv, CONDITIONS, data_sets[0]))
        return data_sets


def measure(size: int, dim: int, numbers: Sequence[int], num_rounds: int) -> Rounds:
    """Evaluate N x D embeddings without groups and with so many, in turns."""
    embeddings, labels = make_embeddings(size, dim)
    groupings: dict[str, np.ndarray | None] = {NONE: None}
    for number in numbers:
        groupings[f"{number} groups"] = np.random.default_rng(0).integers(0, number, size)

    def score(name: str) -> dict[str, Any]:
        started = common.clocks()
        scores = evaluate(embeddings, labels, groups=groupings[name])
        seconds = common.seconds_of(common.clocks() - started)
        return {**seconds, "recall@1": scores["recall@1"], "queries": scores["queries"]}

    for groups in groupings.values():  # compiles
        some = None if groups is None else groups[:WARM_UP]
        evaluate(embeddings[:WARM_UP], labels[:WARM_UP], groups=some)
    return common.in_turns(groupings, num_rounds, score)


def table(rounds: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Return the Markdown table of a data set: a row per number of groups, its best round."""
    cpu = {name: min(each["cpu_seconds"] for each in found) for name, found in rounds.items()}
    rows = [
        [
            *(name, f"{rounds[name][0]['queries']:,}", f"{seconds:.2f}"),
            *(f"{seconds / cpu[NONE]:.2f}", f"{100 * rounds[name][0]['recall@1']:.3f}"),
        ]
        for name, seconds in cpu.items()
    ]
    return common.markdown(("groups", "queries", "CPU s", "times no groups", "recall@1"), rows)


if __name__ == "__main__":
    main()
