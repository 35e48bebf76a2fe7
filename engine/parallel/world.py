"""The processes of a run: how they find each other, and how they part."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache
from itertools import count

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

# Within a step ranks keep up with each other: one that is this late is gone, and the run ends.
STEP_TIMEOUT = timedelta(minutes=10)
# Ranks may wait long for one that reads images, counts ranks, writes a checkpoint or decides.
PATIENCE = timedelta(hours=2)
# In which gloo's threads let go of the tensors of the last collective, in seconds.
RELEASE_TIME = 0.1
_COUNT = count()  # of the groups that were joined


@dataclass(frozen=True)
class World:
    """This process's place among all processes of a run.

    Attributes:
        rank: number of this process, 0 is the one that writes.
        size: number of processes.
        local_rank: number of this process on its node, the GPU it uses.
        patient: all processes, for CPU memory and waits up to PATIENCE; None where one is alone.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    patient: dist.ProcessGroup | None = field(default=None, repr=False, compare=False)

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
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        store, rank, size = _meet()
        own = dist.PrefixStore(f"world {next(_COUNT)}", store)
        dist.init_process_group(
            backend, store=own, rank=rank, world_size=size, timeout=STEP_TIMEOUT
        )
    patient = dist.new_group(backend="gloo", timeout=PATIENCE)
    return World(dist.get_rank(), dist.get_world_size(), local_rank, patient)


@lru_cache(1)
def _meet() -> tuple[dist.Store, int, int]:
    """Return the store in which processes find each other, this one's rank, and how many there are.

    The store outlives a group, and with it the addresses of that: a later group of the same names
    would call them, so each group has a part of its own.
    """
    return next(rendezvous("env://", timeout=STEP_TIMEOUT))


def is_first_process() -> bool:
    """Whether this process was started alone, or as the first one by torchrun."""
    return int(os.environ.get("RANK", "0")) == 0


def leave_world(world: World) -> None:
    """Leave the process group, if one was joined, when all have come to their end.

    Only a run that went well leaves it: NCCL would wait for the others, and after an error the
    process has to end, so that torchrun ends the others too.

    A thread of gloo that frees a tensor of Python waits for the interpreter's lock, and
    DistributedDataParallel never lets go of the group: a process whose interpreter ends first is
    aborted. So the lock is given away here.
    """
    if dist.is_initialized():
        if world.patient is not None:
            dist.barrier(group=world.patient)
        dist.destroy_process_group()
        time.sleep(RELEASE_TIME)
