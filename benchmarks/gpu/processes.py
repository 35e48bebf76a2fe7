"""What several processes do: every collective in a world of one, and two processes against one."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist

from benchmarks.common import ROOT
from benchmarks.gpu import training
from benchmarks.gpu.section import Section, relative
from metric_learning.engine.parallel.devices import choose_device
from metric_learning.engine.parallel.world import World, join_world, leave_world

ONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
SHARD = "--shard_head=True"
CASES = {
    "eml gather chunk": (2, ["--loss_name=eml", "--gather=True", "--chunk_size=2"]),
    "arcmargin shard_head": (1, ["--loss_name=arcmargin", SHARD]),
    "eml gather": (2, ["--loss_name=eml", "--gather=True"]),
    "xbm gather": (2, ["--loss_name=batch_triplet", "--gather=True", "--xbm_size=24"]),
}


def nccl(section: Section) -> None:
    """Make every kind of collective in a world of one process, then train under its variables."""
    port = 20000 + os.getpid() % 20000
    os.environ |= {**ONE, "MASTER_PORT": str(port)}
    world = join_world()
    device = choose_device("auto", section.is_cuda, world)
    section.note(backend=str(dist.get_backend_config()), device=str(device))
    for where in {device, torch.device("cpu")}:
        section.attempt(f"collectives, {where.type}", collect, where, world)
    section.attempt("leave", leave_world, world)

    os.environ["MASTER_PORT"] = str(port + 1)
    more = ["--loss_name=eml", "--samples_each_class=2", "--train_batch_size=8", "--gather=True"]
    more += ["--total_iter_num=3", "--test_iter_step=3", "--device=auto"]
    more += section.size(["--compile=True"], [])
    words = training.demo_words(section, "nccl", *more, f"--use_gpu={section.is_cuda}")
    section.attempt("train_pair", training.train_and_sum_up, 2, words)


def collect(device: torch.device, world: World) -> None:
    """Make collectives of tensors on a device, and of objects; wait for all."""
    tensor = torch.ones(5, device=device)
    dist.all_reduce(tensor)
    dist.broadcast(tensor, 0)
    dist.all_gather([torch.empty_like(tensor)], tensor)
    dist.all_reduce(torch.arange(6, device=device), dist.ReduceOp.MAX)
    dist.all_reduce(torch.ones(3, dtype=torch.float64, device=device))
    dist.broadcast_object_list([{"a": 1}], group=world.patient)
    dist.all_gather_object([None], ValueError("x"), group=world.patient)
    dist.barrier(group=world.patient)


def two_ranks(section: Section) -> None:
    """Compare two processes on one device, which NCCL refuses, over gloo with one process."""
    for number, name in enumerate(list(CASES)[: section.size(len(CASES), 2)]):
        section.attempt(name, compare_ranks, section, number, *CASES[name])


def compare_ranks(section: Section, number: int, stage: int, more: list[str]) -> dict[str, Any]:
    """Return how far the losses of two processes are from those of one, and the tests of both."""
    own = ["--train_batch_size=8", "--total_iter_num=4", "--test_iter_step=4", "--freeze_bn=True"]
    own += ["--amp=off", "--num_workers=0", "--lr=0.01", *more]
    words = training.demo_words(section, f"one {number}", *own)
    alone = training.train(stage, [word for word in words if word != SHARD])

    port = f"--master_port={21000 + os.getpid() % 20000 + number}"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", port]
    command = [*launcher, "-m", "benchmarks.gpu.processes", str(stage)]
    command += training.demo_words(section, f"two {number}", *own)
    subprocess.run(command, timeout=section.size(60, 180), cwd=ROOT, check=True)

    folders = alone, section.own / f"two_{number}"
    losses, tests = (
        [training.records_of(folder, kind, what) for folder in folders]
        for kind, what in (("train", "loss"), ("test", "map@r"))
    )
    return {"loss": relative(losses[1], losses[0]), "map@r": tests}


def main() -> None:
    """Train STAGE with FLAGS as one of two processes, which share a GPU if there is one."""
    with contextlib.ExitStack() as stack:
        if torch.cuda.is_available():
            start = dist.init_process_group

            def over_gloo(backend: str, **options: Any) -> None:
                start("cpu:gloo,cuda:gloo", **options)

            stack.enter_context(patch.object(dist, "init_process_group", over_gloo))
            stack.enter_context(patch.dict(os.environ, LOCAL_RANK="0"))  # the GPU of both
        training.train(int(sys.argv[1]), sys.argv[2:])


if __name__ == "__main__":
    main()
