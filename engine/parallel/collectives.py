"""The few collectives that training under torchrun needs; all of them work in one process too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from metric_learning.engine.parallel.world import World
from metric_learning.retrieval.counting.thresholds import Share

T = TypeVar("T")
# Maps (criterion, embeddings, labels) to the loss and the figures of its log line, all scalars.
# The labels lie in the host's memory, where a loss may ask them without waiting for the device.
StageLoss = Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]]


def wrap(module: nn.Module, world: World) -> nn.Module:
    """Average a module's gradients over all ranks; inputs stay where they lie.

    Modules without parameters stay as they are, and so do those that say `is_sharded`: each rank
    has other parameters. The buffers of parts that say `is_alike` are not sent to the other ranks.
    """
    is_alone = world.size == 1 or getattr(module, "is_sharded", False)
    if is_alone or not any(parameter.requires_grad for parameter in module.parameters()):
        return module
    ignored = [
        f"{prefix}.{name}".lstrip(".")
        for prefix, part in module.named_modules()
        if getattr(part, "is_alike", False)
        for name, _ in part.named_buffers(recurse=False)
    ]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, ignored)
    return DistributedDataParallel(module)


class _GatherRows(torch.autograd.Function):
    """Rows of all ranks in rank order; see `gather_batch` for the gradient."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, world: World, is_split: bool) -> Tensor:
        ctx.world, ctx.is_split = world, is_split
        return _all_rows(rows, world)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        world = ctx.world
        if ctx.is_split:
            gradient = gradient.clone()
            dist.all_reduce(gradient)
        return world.size * gradient.chunk(world.size)[world.rank], None, None


def _all_rows(rows: Tensor, world: World) -> Tensor:
    rows = rows.contiguous()
    parts = [torch.empty_like(rows) for _ in range(world.size)]
    dist.all_gather(parts, rows)
    return torch.cat(parts)


def gather_batch(
    embeddings: Tensor, labels: Tensor, world: World, is_split: bool = False
) -> tuple[Tensor, Tensor]:
    """Put embeddings (B / W, D) and labels (B / W,) of all W ranks together, in the global order.

    The gradient that reaches a rank's embeddings is W times that of the one loss of all rows, so
    that the averaging of `wrap` makes the network's gradient exact. Weights of the loss itself get
    the same gradient on every rank. If it `is_split`, each rank computes a part of the loss, and
    the parts of the gradient are added; otherwise each computes all of it.
    """
    if world.size == 1:
        return embeddings, labels
    return _GatherRows.apply(embeddings, world, is_split), _all_rows(labels, world)


def over_all_ranks(stage_loss: StageLoss, world: World) -> StageLoss:
    """Return the loss of a stage on the images of all ranks instead of this one's."""

    def compute(
        criterion: nn.Module, embeddings: Tensor, labels: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return stage_loss(criterion, *gather_batch(embeddings, labels, world))

    return compute


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
    dist.broadcast_object_list(outcome, group=world.patient)
    decision = outcome[0]
    if isinstance(decision, ValueError | OSError):
        raise decision
    return decision  # type: ignore[return-value]


def largest(number: int, world: World) -> int:
    """Return the largest of the numbers of all ranks."""
    if world.size == 1:
        return number
    numbers = torch.tensor(number)
    dist.all_reduce(numbers, dist.ReduceOp.MAX, group=world.patient)
    return int(numbers)


def first_error(error: Exception | None, world: World) -> Exception:
    """Return, on all ranks, the error of the first rank that has one; one of them must."""
    if world.size == 1:
        assert error is not None
        return error
    errors: list[Exception | None] = [None] * world.size
    dist.all_gather_object(errors, error, group=world.patient)
    return next(error for error in errors if error is not None)


def wait_for_all(world: World) -> None:
    """Return when all ranks have come here, however long they take."""
    if world.size > 1:
        dist.barrier(group=world.patient)


def share_of(world: World, device: torch.device) -> Share:
    """Return the part of a work on arrays that this rank does; sums are exact, of integers."""
    if world.size == 1:
        return Share()

    def add(array: np.ndarray) -> np.ndarray:
        wait_for_all(world)
        total = torch.from_numpy(array).to(device)
        dist.all_reduce(total)
        return total.cpu().numpy()

    # The fewest threads of any: what ranks share out has to be cut alike by all of them.
    return Share(world.rank, world.size, add, -largest(-torch.get_num_threads(), world))


def share_buffers(module: nn.Module, world: World) -> None:
    """Give all ranks the buffers of rank 0: each gathers batch-norm statistics of its own."""
    if world.size > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)


def gather_rows(rows: np.ndarray, world: World, device: torch.device) -> np.ndarray:
    """Put the rows of all ranks in order, where rank r holds rows r, r + W, r + 2W, ...

    From (n, D) float32 of this rank to (N, D); the collective runs on `device`.
    """
    if world.size == 1:
        return rows
    lengths: list[int] = [0] * world.size
    dist.all_gather_object(lengths, len(rows), group=world.patient)
    padded = torch.zeros(max(lengths), rows.shape[1], device=device)
    padded[: len(rows)] = torch.from_numpy(rows)
    parts = [torch.empty_like(padded) for _ in range(world.size)]
    dist.all_gather(parts, padded)
    gathered = np.empty((sum(lengths), rows.shape[1]), dtype=np.float32)
    for rank, (part, length) in enumerate(zip(parts, lengths, strict=True)):
        gathered[rank :: world.size] = part[:length].cpu().numpy()
    return gathered


def merge(values: dict[str, str], world: World) -> dict[str, str]:
    """Return what any rank has; what several have is that of the last."""
    if world.size == 1:
        return values
    parts: list[dict[str, str]] = [{}] * world.size
    dist.all_gather_object(parts, values, group=world.patient)
    return {name: value for part in parts for name, value in part.items()}


def average(values: torch.Tensor, world: World) -> torch.Tensor:
    """Average a tensor over all ranks."""
    return total(values, world) / world.size


def total(values: torch.Tensor, world: World) -> torch.Tensor:
    """Add a tensor up over all ranks."""
    if world.size == 1:
        return values
    values = values.clone()
    dist.all_reduce(values)
    return values
