"""The few collectives that training under torchrun needs; all of them work in one process too."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from retrieval.counting.truth import Share

T = TypeVar("T")

EVALUATION_TIMEOUT = timedelta(hours=2)  # a rank may wait for one that embeds or clusters


@dataclass(frozen=True)
class World:
    """This process's place among all processes of a run.

    Attributes:
        rank: number of this process, 0 is the one that writes.
        size: number of processes.
        local_rank: number of this process on its node, the GPU it uses.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process logs and writes."""
        return self.rank == 0


def join_world() -> World:
    """Join the process group that torchrun describes in the environment, if it does.

    What lies on a GPU travels over NCCL, what lies on the CPU over gloo, which waits for no GPU.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return World()
    world = World(
        int(os.environ["RANK"]),
        int(os.environ["WORLD_SIZE"]),
        int(os.environ.get("LOCAL_RANK", "0")),
    )
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=EVALUATION_TIMEOUT)
    return world


def leave_world() -> None:
    """Leave the process group, if one was joined."""
    if dist.is_initialized():
        dist.destroy_process_group()


def wrap(module: nn.Module, world: World, device: torch.device) -> nn.Module:
    """Average a module's gradients over all ranks; modules without parameters stay as they are."""
    if world.size == 1 or not any(parameter.requires_grad for parameter in module.parameters()):
        return module
    return DistributedDataParallel(module, device_ids=[device] if device.type == "cuda" else None)


def decide_on_main(world: World, decide: Callable[[], T]) -> T:
    """Let rank 0 alone decide something, and give all ranks its decision or its user error."""
    if world.size == 1:
        return decide()
    outcome: list[T | ValueError | OSError | None] = [None]
    if world.is_main:
        try:
            outcome[0] = decide()
        except (ValueError, OSError) as error:
            outcome[0] = error
    dist.broadcast_object_list(outcome)
    decision = outcome[0]
    if isinstance(decision, ValueError | OSError):
        raise decision
    return decision  # type: ignore[return-value]


def largest(number: int, world: World) -> int:
    """Return the largest of the numbers of all ranks.

    Raises:
        OSError: another rank has ended.
    """
    if world.size == 1:
        return number
    numbers = torch.tensor(number)
    try:
        dist.all_reduce(numbers, dist.ReduceOp.MAX)
    except RuntimeError as error:
        raise OSError("another process of this run has ended, its message says why") from error
    return int(numbers)


def first_error(error: Exception | None, world: World) -> Exception:
    """Return, on all ranks, the error of the first rank that has one; one of them must."""
    if world.size == 1:
        assert error is not None
        return error
    errors: list[Exception | None] = [None] * world.size
    dist.all_gather_object(errors, error)
    return next(error for error in errors if error is not None)


def wait_for_all(world: World) -> None:
    """Return when all ranks have come here."""
    if world.size > 1:
        dist.barrier()


def share_of(world: World, device: torch.device) -> Share:
    """Return the part of a work on arrays that this rank does; sums are exact, of integers."""
    if world.size == 1:
        return Share()

    def add(array: np.ndarray) -> np.ndarray:
        total = torch.from_numpy(array).to(device)
        dist.all_reduce(total)
        return total.cpu().numpy()

    return Share(world.rank, world.size, add)


def share_buffers(module: nn.Module, world: World) -> None:
    """Give all ranks the buffers of rank 0: each gathers batch-norm statistics of its own."""
    if world.size > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)


def gather_rows(rows: np.ndarray, world: World, device: torch.device) -> np.ndarray:
    """Put the rows of all ranks in order, where rank r holds rows r, r + W, r + 2W, ...

    Args:
        rows: (n, D) float32 of this rank; n differs by at most one between ranks.
        world: this process's place.
        device: where the collective runs.

    Returns:
        (N, D) float32, the same on every rank.
    """
    if world.size == 1:
        return rows
    lengths: list[int] = [0] * world.size
    dist.all_gather_object(lengths, len(rows))
    padded = torch.zeros(max(lengths), rows.shape[1], device=device)
    padded[: len(rows)] = torch.from_numpy(rows)
    parts = [torch.empty_like(padded) for _ in range(world.size)]
    dist.all_gather(parts, padded)
    gathered = np.empty((sum(lengths), rows.shape[1]), dtype=np.float32)
    for rank, (part, length) in enumerate(zip(parts, lengths, strict=True)):
        gathered[rank :: world.size] = part[:length].cpu().numpy()
    return gathered


def average(values: torch.Tensor, world: World) -> torch.Tensor:
    """Average a tensor over all ranks."""
    if world.size == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / world.size
