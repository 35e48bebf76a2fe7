"""Measure a class layer that is split over processes beside the whole one in one process.

python -m benchmarks.speed.shard --class_dim=1000000 --embedding_size=512 --processes=2

Both train on the same random embeddings, in turns, each in fresh processes under torchrun on the
CPU; only the layer is trained, no network. All processes share the threads of the machine, so what
counts is the CPU time of all of them, and the memory of each.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from benchmarks import common
from benchmarks.common import Rounds
from metric_learning.common.cli import user_errors
from metric_learning.common.flags import Flag, parse_flags, positive
from metric_learning.engine.parallel.sharded_head import build_sharded_loss
from metric_learning.engine.parallel.world import World, join_world, leave_world
from metric_learning.losses import ELEM_LOSSES

FLAGS = (
    Flag("loss_name", str, "softmax", "stage-1 loss", tuple(ELEM_LOSSES)),
    Flag("class_dim", positive, 1000000, "number of classes"),
    Flag("embedding_size", positive, 512, "dimension of the embeddings"),
    Flag("batch_size", positive, 64, "embeddings per step, of all processes"),
    Flag("processes", positive, 2, "number of processes that share the classes"),
    Flag("steps", positive, 3, "steps that are timed, after a first one that is not"),
    Flag("rounds", positive, 2, "times that each is measured"),
)
GIB = 2**30


class Work(NamedTuple):
    """What is trained: a loss with C classes, on B embeddings (B, D) a step."""

    loss_name: str
    class_dim: int
    embedding_size: int
    batch_size: int
    steps: int


def main(argv: Sequence[str] | None = None) -> Rounds:
    """Print a table in Markdown; return what each round found, by number of processes."""
    with user_errors():
        flags = parse_flags(__doc__, FLAGS, argv)
        if flags.batch_size % flags.processes:
            raise ValueError(
                f"expected a batch size that is a multiple of {flags.processes} (processes), "
                f"found {flags.batch_size}"
            )
        work = Work(*(flags.values[name] for name in Work._fields))
        names = dict.fromkeys(("1", str(flags.processes)))
        rounds = common.in_turns(names, flags.rounds, lambda name: measure_apart(int(name), work))

        conditions = (
            "SGD with momentum, gloo; memory above what the process held before, weights, gradient "
            "and momentum included."
        )
        notes = common.notes("shard", argv, conditions, rounds)
        print(table(work, rounds), notes, sep="\n\n")
        return rounds


def measure_apart(num_processes: int, work: Work) -> dict[str, Any]:
    """Measure in fresh processes; return what `measure` found."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_processes}"]
    command = [sys.executable, *launcher, "-m", "benchmarks.speed.shard", json.dumps(work)]
    return common.run_apart(command, max(1, common.num_threads() // num_processes))


def measure(work: Work, world: World) -> dict[str, Any]:
    """Train the layer for some steps."""
    held = common.memory("VmRSS")
    torch.manual_seed(0)
    sizes = {"class_dim": work.class_dim, "embedding_size": work.embedding_size}
    criterion = build_sharded_loss(world, work.loss_name, **sizes)
    optimizer = torch.optim.SGD(criterion.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)
    losses, seconds = [], np.zeros(2)

    for step in range(1 + work.steps):
        draw = torch.Generator().manual_seed(step)  # the same in all processes
        whole = torch.randn(work.batch_size, work.embedding_size, generator=draw)
        labels = torch.randint(work.class_dim, (work.batch_size,), generator=draw)
        embeddings = whole.chunk(world.size)[world.rank].clone().requires_grad_()

        start = common.clocks()
        loss, _ = criterion(embeddings, labels.chunk(world.size)[world.rank])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step > 0:
            seconds += (common.clocks() - start) / work.steps

    of_all: list[Any] = [None] * world.size
    found = common.memory("VmHWM") - held, seconds[0]
    dist.all_gather_object(of_all, found, group=world.patient)
    summed = common.seconds_of(np.array([sum(cpu for _, cpu in of_all), seconds[1]]))
    return {"losses": losses, **summed, "peak_bytes": [peak for peak, _ in of_all]}


def measure_as_rank(work: Work) -> None:
    """Measure as one of several processes; the first one prints what was found."""
    world = join_world()
    found = measure(work, world)
    if world.is_main:
        print(json.dumps(found))
    leave_world(world)


def table(work: Work, rounds: Rounds) -> str:
    """Return the Markdown table, a row per number of processes, the best round of each."""
    alone = min(each["cpu_seconds"] for each in rounds["1"])
    rows = []
    for num_processes, found in rounds.items():
        best = min(found, key=lambda each: each["cpu_seconds"])
        cpu, losses = best["cpu_seconds"], best["losses"]
        row = [num_processes, f"{cpu:.2f}", f"{cpu / alone:.2f}", f"{best['wall_seconds']:.2f}"]
        row += [", ".join(f"{peak / GIB:.2f}" for peak in best["peak_bytes"])]
        row += [f"{losses[0]:.6f}, {losses[-1]:.6f}"]
        rows.append([*row, common.values_of(found, "cpu_seconds", 2)])

    size = f"({4 * work.class_dim * work.embedding_size / GIB:.2f} GiB)"
    title = f"### {work.loss_name}, {work.class_dim:,} classes x {work.embedding_size} {size}"
    titles = ("processes", "CPU s per step", "times one process", "wall s per step")
    more = ("peak GiB of each process", "loss of the first and last step", "CPU s of each round")
    body = common.markdown((*titles, *more), rows)
    return f"{title}, {work.batch_size} embeddings per step\n\n{body}"


if __name__ == "__main__":
    if "RANK" in os.environ:  # one of the processes that torchrun started, with the Work (JSON)
        measure_as_rank(Work(*json.loads(sys.argv[1])))
    else:
        main()
