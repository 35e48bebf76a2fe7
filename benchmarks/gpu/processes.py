"""What several processes do: every collective in a world of one, and two processes against one."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import warnings
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from timm.layers import convert_sync_batchnorm
from torch.nn.parallel import DistributedDataParallel

from benchmarks.common import ROOT
from benchmarks.gpu.runs import (
    SCRIPTS,
    Records,
    demo_words,
    losses_of,
    read_records,
    summary_of,
    train_quietly,
)
from benchmarks.gpu.section import Section, relative
from metric_learning.engine.parallel.devices import choose_device
from metric_learning.engine.parallel.world import World, join_world, leave_world
from metric_learning.engine.train.step import compiled
from metric_learning.losses import build_loss
from metric_learning.models import EmbeddingModel, build_model

ONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}


def nccl(section: Section) -> None:
    """Make every kind of collective in a world of one process, then train under its variables."""
    port = 20000 + os.getpid() % 20000
    os.environ |= {**ONE, "MASTER_PORT": str(port)}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        begin = time.monotonic()
        world = join_world()
        device = choose_device("auto", section.is_cuda, world)
        backend = str(dist.get_backend_config())
        section.note(joined=time.monotonic() - begin, backend=backend, device=str(device))

        for kind in {device, torch.device("cpu")}:
            section.attempt(f"collectives, {kind}", lambda kind=kind: collect(kind))  # type: ignore[misc]
        section.attempt("objects and barrier", lambda: share_objects(world))
        section.attempt("DDP", lambda: train_replica(section, device))
        if section.is_cuda:
            section.attempt("SyncBatchNorm", lambda: synchronised(device))
        section.attempt("leave", leave_world)
    texts = {str(w.message)[:160] for w in caught if "torch" in str(w.filename)}
    section.note(warnings=sorted(texts)[:6])

    section.images()
    os.environ["MASTER_PORT"] = str(port + 1)
    more = ["--loss_name=eml", "--samples_each_class=2", "--train_batch_size=8"]
    more += ["--total_iter_num=3", "--test_iter_step=3", "--gather=True"]
    words = demo_words(section, "nccl", *more, "--device=auto", f"--use_gpu={section.is_cuda}")
    section.attempt("train_pair", lambda: summary_of(train_quietly(2, words)), needs=8)


def collect(device: torch.device) -> str:
    """Make collectives of tensors on a device."""
    tensor = torch.ones(5, device=device)
    dist.all_reduce(tensor)
    dist.broadcast(tensor, 0)
    dist.all_gather([torch.empty_like(tensor)], tensor)
    dist.all_reduce(torch.arange(6, device=device), dist.ReduceOp.MAX)
    dist.all_reduce(torch.ones(3, dtype=torch.float64, device=device))
    return "done"


def share_objects(world: World) -> str:
    """Send objects, and wait for all."""
    dist.broadcast_object_list([{"a": 1}], group=world.patient)
    dist.all_gather_object([None], ValueError("x"), group=world.patient)
    dist.barrier(group=world.patient)
    return "done"


def small_model(device: torch.device) -> EmbeddingModel:
    """Return a small network in training mode."""
    torch.manual_seed(0)
    model = build_model("test_resnet", image_size=32).to(device)
    return model.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]


def train_replica(section: Section, device: torch.device) -> str:
    """Train under DistributedDataParallel, with and without averaging, in bfloat16, compiled."""
    replica = DistributedDataParallel(small_model(device), [device] if section.is_cuda else None)
    criterion = build_loss("eml", samples_each_class=2)
    weights = replica.parameters()
    optimizer = torch.optim.SGD(weights, 0.01, momentum=0.9, fused=section.is_cuda)
    labels = torch.arange(8, device=device) // 2

    for number in range(4):
        with replica.no_sync() if number % 2 == 0 else contextlib.nullcontext():
            with torch.autocast(device.type, dtype=torch.bfloat16):
                embeddings = replica(torch.randn(8, 3, 32, 32, device=device))
            criterion(embeddings.float(), labels).backward()
        if number % 2:
            optimizer.step()
            optimizer.zero_grad()
    if section.is_cuda:
        compiled(replica, device)(torch.randn(8, 3, 32, 32, device=device)).sum().backward()
    return "done"


def synchronised(device: torch.device) -> str:
    """Run both passes of a network whose batch norm spans all processes."""
    model = convert_sync_batchnorm(small_model(device)).to(device)
    model(torch.randn(4, 3, 32, 32, device=device)).sum().backward()
    return "done"


def two_ranks(section: Section) -> None:
    """Compare two processes on one device, which NCCL refuses, over gloo with one process."""
    section.images()
    cases = {
        "eml gather": (2, ["--loss_name=eml", "--gather=True"]),
        "eml gather chunk": (2, ["--loss_name=eml", "--gather=True", "--chunk_size=2"]),
        "arcmargin shard_head": (1, ["--loss_name=arcmargin", "--shard_head=True"]),
        "batch_triplet xbm gather": (2, ["--loss_name=batch_triplet", "--gather=True"]),
    }
    cases["batch_triplet xbm gather"][1].append("--xbm_size=24")
    for number, (name, (stage, more)) in enumerate(cases.items()):

        def compare(number: int = number, stage: int = stage, more: list[str] = more) -> Any:
            one = [word for word in more if word != "--shard_head=True"]
            alone = train_quietly(stage, words_of(section, f"one_{number}", *one))
            both = train_twice(section, number, stage, more)
            tests = [r["map@r"] for found in (alone, both) for r in found if r["kind"] == "test"]
            return {"loss": relative(losses_of(both), losses_of(alone)), "map@r": tests}

        section.attempt(name, compare, needs=12)


def words_of(section: Section, run_name: str, *more: str) -> list[str]:
    """Return flags of a few steps whose weights do not depend on how images are shared."""
    own = ["--train_batch_size=8", "--total_iter_num=4", "--test_iter_step=4", "--freeze_bn=True"]
    own += ["--amp=off", "--num_workers=0", "--lr=0.01", f"--device={section.device.type}"]
    return demo_words(section, run_name, *own, *more)


def train_twice(section: Section, number: int, stage: int, more: list[str]) -> Records:
    """Train in two processes; return their records.

    Raises:
        RuntimeError: they fail.
    """
    import subprocess

    port = 21000 + os.getpid() % 20000 + number
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    command = [sys.executable, *launcher, "-m", "benchmarks.gpu.processes", str(stage)]
    command += words_of(section, f"two_{number}", *more)
    limit = max(10, min(section.size(60, 180), section.left()))
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit, cwd=ROOT)
    if done.returncode:
        lines = done.stderr.splitlines()
        reasons = [line for line in lines if "Error" in line or "error:" in line]
        raise RuntimeError(f"exit {done.returncode}: {' / '.join(reasons[:3])[:280]}")
    return read_records(section.own / f"two_{number}")


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
        SCRIPTS[stage].main(words)


if __name__ == "__main__":
    main()
