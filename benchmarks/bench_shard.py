"""Measure a class layer that is split over processes beside the whole one in one process.

python -m benchmarks.bench_shard --class_dim=1000000 --embedding_size=512 --processes=2

Both train on the same random embeddings, in turns, each in fresh processes under torchrun on the
CPU; only the layer is trained, no network. All processes share the threads of the machine, so what
counts is the CPU time of all of them, and the memory of each.
"""

from __future__ import annotations

import json
import os
import resource
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from metric_learning.engine.parallel.distributed import World, join_world, leave_world

from benchmarks.bench_retrieval import machine
from metric_learning.common.cli import user_errors
from metric_learning.common.flags import Flag, Flags, parse_flags, positive
from metric_learning.engine.parallel.sharded_head import build_sharded_loss
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


def main(argv: Sequence[str] | None = None) -> dict[int, list[dict[str, Any]]]:
    """Print a table in Markdown; return what each round found, by number of processes."""
    with user_errors():
        args = parse_flags(__doc__, FLAGS, argv)
        if args.batch_size % args.processes:
            raise ValueError(
                f"expected a batch size that is a multiple of {args.processes} (processes), "
                f"found {args.batch_size}"
            )
        found: dict[int, list[dict[str, Any]]] = {1: [], args.processes: []}
        for _ in range(args.rounds):
            for num_processes, rounds in found.items():
                rounds.append(measure_apart(args, num_processes))
        print(table(args, found))
        return found


def measure_apart(args: Flags, num_processes: int) -> dict[str, Any]:
    """Measure in fresh processes; return what `measure` found."""
    flags = [f"--{flag.name}={getattr(args, flag.name)}" for flag in FLAGS]
    threads = max(1, machine()["threads"] // num_processes)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_processes}"]
    done = subprocess.run(
        [sys.executable, *launcher, __file__, *flags],
        env=os.environ | {"OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise ValueError(f"{num_processes} process(es) failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(args: Flags, world: World) -> dict[str, Any]:
    """Train the layer for some steps.

    Returns:
        `losses` of all steps, median `seconds` and mean `cpu_seconds` (of all processes) of the
        timed ones, and of each process `peak_bytes` above what it held before.
    """
    held = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    torch.manual_seed(0)
    sizes = {"class_dim": args.class_dim, "embedding_size": args.embedding_size}
    criterion = build_sharded_loss(world, args.loss_name, **sizes)
    optimizer = torch.optim.SGD(criterion.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)
    losses, seconds, cpu_seconds = [], [], []
    for step in range(1 + args.steps):
        rng = torch.Generator().manual_seed(step)
        rows = torch.randn(args.batch_size, args.embedding_size, generator=rng)
        classes = torch.randint(args.class_dim, (args.batch_size,), generator=rng)
        embeddings = rows.chunk(world.size)[world.rank].clone().requires_grad_()
        labels = classes.chunk(world.size)[world.rank]
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


def table(args: Flags, found: dict[int, list[dict[str, Any]]]) -> str:
    """Return the Markdown table, a row per number of processes, the best round of each."""
    weights = 4 * args.class_dim * args.embedding_size / GIB
    lines = [
        f"### {args.loss_name}, {args.class_dim:,} classes x {args.embedding_size} "
        f"({weights:.2f} GiB), {args.batch_size} embeddings per step",
        "",
        "| processes | CPU s per step | times one process | wall s per step | peak GiB of each "
        "process | loss of the first and last step | CPU s of each round |",
        "|--:|--:|--:|--:|--:|--:|---|",
    ]
    alone = min(measured["cpu_seconds"] for measured in found[1])
    for num_processes, rounds in found.items():
        best = min(rounds, key=lambda measured: measured["cpu_seconds"])
        cells = [
            f"{num_processes}",
            f"{best['cpu_seconds']:.2f}",
            f"{best['cpu_seconds'] / alone:.2f}",
            f"{best['seconds']:.2f}",
            ", ".join(f"{peak / GIB:.2f}" for peak in best["peak_bytes"]),
            f"{best['losses'][0]:.6f}, {best['losses'][-1]:.6f}",
            ", ".join(f"{measured['cpu_seconds']:.2f}" for measured in rounds),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    about = machine()
    lines += [
        "",
        f"`python -m benchmarks.bench_shard {shlex.join(sys.argv[1:])}`: SGD with momentum; memory "
        "above what the process held before, weights, gradient and momentum included.",
        f"{about['cpu']}, {about['threads']} threads in all, {about['system']}, gloo, "
        f"torch {torch.__version__}.",
    ]
    return "\n".join(lines)


def run_worker() -> None:
    """Measure as one of the processes that torchrun started; rank 0 prints what was found."""
    args = parse_flags(__doc__, FLAGS, None)
    world = join_world()
    found = measure(args, world)
    if world.is_main:
        print(json.dumps(found))
    leave_world()


if __name__ == "__main__":
    if "RANK" in os.environ:
        run_worker()
    else:
        main()
