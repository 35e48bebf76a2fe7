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
from timm.layers import convert_sync_batchnorm
from torch.nn.parallel import DistributedDataParallel

from benchmarks.common import ROOT
from benchmarks.gpu import runs
from benchmarks.gpu.section import Section, relative
from metric_learning.engine.parallel.devices import choose_device
from metric_learning.engine.parallel.world import World, join_world, leave_world
from metric_learning.engine.train.step import compiled
from metric_learning.losses import build_loss
from metric_learning.models import build_model

ONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
SHARD = "--shard_head=True"
CASES = {
    "eml gather": (2, ["--loss_name=eml", "--gather=True"]),
    "eml gather chunk": (2, ["--loss_name=eml", "--gather=True", "--chunk_size=2"]),
    "arcmargin shard_head": (1, ["--loss_name=arcmargin", SHARD]),
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
        section.attempt(f"collectives, {where.type}", collect, where)
    section.attempt("objects and barrier", share_objects, world)
    section.attempt("DDP", train_replica, section, device)
    section.attempt("leave", leave_world)

    section.images()
    os.environ["MASTER_PORT"] = str(port + 1)
    more = ["--loss_name=eml", "--samples_each_class=2", "--train_batch_size=8", "--gather=True"]
    more += ["--total_iter_num=3", "--test_iter_step=3", "--device=auto"]
    words = runs.demo_words(section, "nccl", *more, f"--use_gpu={section.is_cuda}")
    section.attempt("train_pair", runs.train_and_sum_up, 2, words)


def collect(device: torch.device) -> None:
    """Make collectives of tensors on a device."""
    tensor = torch.ones(5, device=device)
    dist.all_reduce(tensor)
    dist.broadcast(tensor, 0)
    dist.all_gather([torch.empty_like(tensor)], tensor)
    dist.all_reduce(torch.arange(6, device=device), dist.ReduceOp.MAX)
    dist.all_reduce(torch.ones(3, dtype=torch.float64, device=device))


def share_objects(world: World) -> None:
    """Send objects, and wait for all."""
    dist.broadcast_object_list([{"a": 1}], group=world.patient)
    dist.all_gather_object([None], ValueError("x"), group=world.patient)
    dist.barrier(group=world.patient)


def train_replica(section: Section, device: torch.device) -> None:
    """Train under DistributedDataParallel, in bfloat16; on a GPU compiled and synchronised too."""
    model: Any = build_model("test_resnet", image_size=32).to(device).train()
    model = model.to(memory_format=torch.channels_last)
    replica = DistributedDataParallel(model, [device] if section.is_cuda else None)
    criterion = build_loss("eml", samples_each_class=2)
    optimizer = torch.optim.SGD(replica.parameters(), 0.01, 0.9, fused=section.is_cuda)
    labels, images = torch.arange(8, device=device) // 2, torch.randn(8, 3, 32, 32, device=device)

    for number in range(4):
        with replica.no_sync() if number % 2 == 0 else contextlib.nullcontext():
            with torch.autocast(device.type, dtype=torch.bfloat16):
                embeddings = replica(images)
            criterion(embeddings.float(), labels).backward()
        if number % 2:
            optimizer.step()
            optimizer.zero_grad()
    if section.is_cuda:
        compiled(replica, device)(images).sum().backward()
        convert_sync_batchnorm(model).to(device)(images).sum().backward()


def two_ranks(section: Section) -> None:
    """Compare two processes on one device, which NCCL refuses, over gloo with one process."""
    section.images()
    names = section.size(list(CASES), ["eml gather chunk", "arcmargin shard_head"])
    for number, name in enumerate(names):
        stage, more = CASES[name]
        section.attempt(name, compare_ranks, section, number, stage, more)


def compare_ranks(section: Section, number: int, stage: int, more: list[str]) -> dict[str, Any]:
    """Return how far the losses of two processes are from those of one, and the tests of both.

    Raises:
        RuntimeError: the processes fail.
    """
    own = ["--train_batch_size=8", "--total_iter_num=4", "--test_iter_step=4", "--freeze_bn=True"]
    own += ["--amp=off", "--num_workers=0", "--lr=0.01", f"--device={section.device}", *more]
    words = runs.demo_words(section, f"one {number}", *own)
    alone = runs.train_quietly(stage, [word for word in words if word != SHARD])

    port = f"--master_port={21000 + os.getpid() % 20000 + number}"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", port]
    command = [*launcher, "-m", "benchmarks.gpu.processes", str(stage)]
    command += runs.demo_words(section, f"two {number}", *own)
    limit = max(10, min(section.size(60, 180), section.left()))
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit, cwd=ROOT)
    if done.returncode:
        reasons = [line for line in done.stderr.splitlines() if "rror" in line]
        raise RuntimeError(f"exit {done.returncode}: {' / '.join(reasons[:3])[:280]}")
    both = runs.read_records(section.own / f"two_{number}")
    tests = [record["map@r"] for record in (*alone, *both) if record["kind"] == "test"]
    return {"loss": relative(runs.losses_of(both), runs.losses_of(alone)), "map@r": tests}


def main() -> None:
    """Train STAGE with FLAGS as one of two processes, which share a GPU if there is one."""
    stage, words = int(sys.argv[1]), sys.argv[2:]
    with contextlib.ExitStack() as stack:
        if torch.cuda.is_available():
            start = dist.init_process_group

            def over_gloo(backend: str, **options: Any) -> None:
                start("cpu:gloo,cuda:gloo", **options)

            stack.enter_context(patch.object(dist, "init_process_group", over_gloo))
            stack.enter_context(patch.object(torch.cuda, "device_count", lambda: 2))
            stack.enter_context(patch.object(torch.cuda, "set_device", lambda device: None))
        runs.STAGES[stage][0].main(words)


if __name__ == "__main__":
    main()
