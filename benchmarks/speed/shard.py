"""Measure a class layer that is split over processes beside the whole one in one process.

python -m benchmarks.speed.shard --class_dim=1000000 --embedding_size=512 --processes=2

Both train on the same random embeddings, in turns, each in fresh processes under torchrun on the
CPU; only the layer is trained, no network. All processes share the threads of the machine, so what
counts is the CPU time of all of them, and the memory of each.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

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


@dataclass(frozen=True)
class Work:
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
        work = Work(**{name: getattr(flags, name) for name in Work.__annotations__})
        words = [f"--{name}={value}" for name, value in vars(work).items()]
        if "RANK" in os.environ:  # one of the processes that torchrun started
            return measure_as_rank(work)

        rounds = common.in_turns(
            dict.fromkeys(("1", str(flags.processes))),
            flags.rounds,
            lambda num_processes: measure_apart(int(num_processes), words),
            lambda found: f"{found['cpu_seconds']:.2f} CPU s per step",
        )
        conditions = (
            "SGD with momentum, gloo; memory above what the process held before, weights, gradient "
            "and momentum included."
        )
        used = {"all": common.versions("torch", "numpy")}
        print(table(work, rounds), common.notes("shard", argv, conditions, {}, used), sep="\n\n")
        return rounds


def measure_apart(num_processes: int, words: Sequence[str]) -> dict[str, Any]:
    """Measure in fresh processes; return what `measure` found."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_processes}"]
    command = [sys.executable, *launcher, "-m", "benchmarks.speed.shard", *words]
    return common.run_apart(command, max(1, common.machine()["threads"] // num_processes))


def measure_as_rank(work: Work) -> Rounds:
    """Measure as one of several processes; the first one prints what was found."""
    world = join_world()
    found = measure(work, world)
    if world.is_main:
        print(json.dumps(found))
    leave_world()
    return {str(world.size): [found]}


def measure(work: Work, world: World) -> dict[str, Any]:
    """Train the layer for some steps.

    Returns:
        `losses` of all steps, median `seconds` and mean `cpu_seconds` (of all processes) of the
        timed ones, and of each process `peak_bytes` above what it held before.
    """
    held = common.memory("VmRSS")
    torch.manual_seed(0)
    sizes = {"class_dim": work.class_dim, "embedding_size": work.embedding_size}
    criterion = build_sharded_loss(world, work.loss_name, **sizes)
    optimizer = torch.optim.SGD(criterion.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)
    losses, seconds, cpu_seconds = [], [], []

    for step in range(1 + work.steps):
        embeddings, labels = (values.chunk(world.size)[world.rank] for values in draw(work, step))
        embeddings = embeddings.clone().requires_grad_()
        start, cpu_start = time.perf_counter(), time.process_time()
        loss, _ = criterion(embeddings, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - held
    of_all: list[tuple[int, float]] = [(0, 0.0)] * world.size
    dist.all_gather_object(of_all, (peak, statistics.mean(cpu_seconds[1:])), group=world.patient)
    return {
        "losses": losses,
        "seconds": statistics.median(seconds[1:]),
        "cpu_seconds": sum(cpu for _, cpu in of_all),
        "peak_bytes": [peak for peak, _ in of_all],
    }


def draw(work: Work, step: int) -> tuple[Tensor, Tensor]:
    """Return the embeddings (B, D) and labels (B,) of a step, the same in all processes."""
    rng = torch.Generator().manual_seed(step)
    embeddings = torch.randn(work.batch_size, work.embedding_size, generator=rng)
    return embeddings, torch.randint(work.class_dim, (work.batch_size,), generator=rng)


def table(work: Work, rounds: Rounds) -> str:
    """Return the Markdown table, a row per number of processes, the best round of each."""
    alone = min(measured["cpu_seconds"] for measured in rounds["1"])
    rows = []
    for num_processes, found in rounds.items():
        best = min(found, key=lambda measured: measured["cpu_seconds"])
        rows.append(
            [
                num_processes,
                f"{best['cpu_seconds']:.2f}",
                f"{best['cpu_seconds'] / alone:.2f}",
                f"{best['seconds']:.2f}",
                ", ".join(f"{peak / GIB:.2f}" for peak in best["peak_bytes"]),
                f"{best['losses'][0]:.6f}, {best['losses'][-1]:.6f}",
                ", ".join(f"{measured['cpu_seconds']:.2f}" for measured in found),
            ]
        )

    title = (
        f"### {work.loss_name}, {work.class_dim:,} classes x {work.embedding_size} "
        f"({4 * work.class_dim * work.embedding_size / GIB:.2f} GiB), {work.batch_size} embeddings "
        "per step"
    )
    titles = ("processes", "CPU s per step", "times one process", "wall s per step")
    more = ("peak GiB of each process", "loss of the first and last step", "CPU s of each round")
    return f"{title}\n\n{common.markdown((*titles, *more), rows)}"


if __name__ == "__main__":
    main()
