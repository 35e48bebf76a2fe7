"""The class layer of stage 1 split over the ranks, so that it need not fit on one device.

Each rank holds the weights of some of the classes and their logits for the images of all ranks, as
in Partial FC (An et al. 2021), section 3.1, https://arxiv.org/abs/2010.05222, here without
sampling of classes: loss and gradient are those of the whole layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from metric_learning.engine.parallel.collectives import gather_batch
from metric_learning.engine.parallel.world import World
from metric_learning.losses import ELEM_LOSSES, SplittableLoss, build_loss, find_loss
from metric_learning.losses.functional import checked_classes

DRAWN_ROWS = 16384  # initial weights drawn at a time

State = dict[str, Any]


class ShardedHead(nn.Module):
    """A stage-1 loss over the images and classes of all W ranks, by the `loss` of this rank's.

    Shape:
        embeddings: (B / W, D) float, of this rank's images.
        labels: (B / W,) int64 in 0..C-1.
        returns: loss () float32, the mean over the B images of all ranks, and (B,) int64, the
            number of classes ahead of each image's own, see `functional.classes_ahead`; both
            the same on every rank.

    The gradient of the weights is whole: it is not to be averaged. That of the embeddings is W
    times as large, as explained at `collectives.gather_batch`.
    """

    is_sharded = True

    def __init__(self, loss: Any, class_dim: int, world: World) -> None:
        super().__init__()
        self.loss = loss
        self.class_dim = class_dim
        self.world = world

    def forward(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean loss, and how many classes are ahead of each image's own."""
        labels = checked_classes(embeddings, labels, self.class_dim)
        embeddings, labels = gather_batch(embeddings, labels, self.world, is_split=True)
        first, end = _classes(self.world.rank, self.class_dim, self.world)
        is_here = (labels >= first) & (labels < end)
        here = torch.where(is_here, labels - first, -1)
        logits = self.loss.logits(embeddings, here)  # Bx(C/W)
        floor = getattr(self.loss, "logit_floor", -math.inf)  # a loss of one's own may lack it
        return _SplitCrossEntropy.apply(logits, here, floor)

    def own_rows(self, whole: Tensor) -> Tensor:
        """Return this rank's rows of a tensor with a row per class; scalars as they are."""
        first, end = _classes(self.world.rank, self.class_dim, self.world)
        return whole[first:end].clone() if whole.ndim else whole

    def all_rows(self, shard: Tensor) -> Tensor:
        """Return the rows of all classes in rank 0's CPU memory; on other ranks, their own.

        All ranks call it together. Scalars are returned as they are.
        """
        shard, world = shard.cpu(), self.world
        if shard.ndim == 0:
            return shard
        if not world.is_main:
            dist.send(shard.contiguous(), 0, group=world.patient)
            return shard
        whole = shard.new_empty(self.class_dim, *shard.shape[1:])
        whole[: len(shard)] = shard
        for rank in range(1, world.size):
            first, end = _classes(rank, self.class_dim, world)
            dist.recv(whole[first:end], rank, group=world.patient)
        return whole


def _classes(rank: int, class_dim: int, world: World) -> tuple[int, int]:
    """Return the first class of a rank, and that of the next."""
    return rank * class_dim // world.size, (rank + 1) * class_dim // world.size


class _SplitCrossEntropy(torch.autograd.Function):
    """`losses.functional.cross_entropy` of logits whose columns are split over the ranks.

    Takes (B, C / W) logits, (B,) labels, -1 where the label's column is on another rank, and the
    floor of the logits. Also returns how many classes are ahead of the image's own, (B,) int64.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, floor: float) -> tuple[Tensor, Tensor]:
        columns = labels.clamp(min=0)
        own = logits.gather(1, columns[:, None]).squeeze(1)
        own = own.masked_fill(labels < 0, -torch.inf)
        peaks = torch.stack([logits.amax(1), own])
        dist.all_reduce(peaks, dist.ReduceOp.MAX)
        largest, targets = peaks

        exponentials = (logits - largest[:, None]).clamp_(min=floor).exp_()
        ahead = ~(logits < targets[:, None])
        sums = torch.stack([exponentials.sum(1, dtype=torch.float64), ahead.sum(1).double()])
        dist.all_reduce(sums)
        total, num_ahead = sums

        shifted = (targets - largest).clamp(min=floor)
        loss = (total.log() - shifted).mean().to(logits.dtype)
        num_ahead = num_ahead.long() - 1  # the image's own class is not ahead of itself
        ctx.save_for_backward(exponentials.div_(total[:, None]), labels)
        ctx.mark_non_differentiable(num_ahead)
        return loss, num_ahead

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        probabilities, labels = ctx.saved_tensors
        share = gradient / len(labels)
        at_labels = torch.where(labels < 0, 0.0, -share)[:, None]
        logits = (share * probabilities).scatter_add_(1, labels.clamp(min=0)[:, None], at_labels)
        return logits, None, None


def build_sharded_loss(world: World, name: str, **options: Any) -> nn.Module:
    """Build a stage-1 loss split over the ranks; with one process, the loss itself.

    The initial weights are those of the whole loss for the same state of torch's random generator,
    drawn in blocks; no rank ever holds them all. Raises ValueError where the loss cannot be split,
    not with these options, or there are fewer classes than ranks.
    """
    if not issubclass(find_loss(name), SplittableLoss):
        able = [other for other, loss in ELEM_LOSSES.items() if issubclass(loss, SplittableLoss)]
        raise ValueError(
            f"--shard_head is not possible with --loss_name={name} (but with {', '.join(able)}): "
            "leave it out"
        )
    for option in ("label_smoothing", "class_dropout"):
        if options.get(option):
            raise ValueError(
                f"--shard_head is not possible with --{option}: leave one out, or give --{option}=0"
            )
    if world.size == 1:
        return build_loss(name, **options)

    class_dim = options["class_dim"]
    if class_dim < world.size:
        raise ValueError(
            f"--shard_head=True gives each process classes of its own, found {class_dim} classes "
            f"for {world.size} processes: leave it out"
        )

    first, end = _classes(world.rank, class_dim, world)
    random_state = torch.get_rng_state()
    loss: Any = build_loss(name, **options | {"class_dim": end - first})
    torch.set_rng_state(random_state)
    weight = loss.weight.data
    for start in range(0, class_dim, DRAWN_ROWS):
        rows = weight.new_empty(min(DRAWN_ROWS, class_dim - start), *weight.shape[1:])
        loss.draw_weight(rows, class_dim)
        low, high = max(first, start), min(end, start + len(rows))
        if low < high:
            weight[low - first : high - first] = rows[low - start : high - start]
    return ShardedHead(loss, class_dim, world)


def collect_state(criterion: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[State, State]:
    """Return the states of a loss and of an optimizer as a run without shards has them.

    Of a sharded head they are whole on rank 0 only, in CPU memory: what the other ranks get is not
    to be used, but all ranks call this together.
    """
    optimizer_state = optimizer.state_dict()
    if not isinstance(criterion, ShardedHead):
        return criterion.state_dict(), optimizer_state
    return (
        _each(criterion.loss.state_dict(), criterion.all_rows),
        _each_of_head(optimizer_state, criterion, optimizer, criterion.all_rows),
    )


def own_state(
    criterion: nn.Module,
    optimizer: torch.optim.Optimizer,
    criterion_state: State,
    optimizer_state: State,
) -> tuple[nn.Module, State, State]:
    """Return the loss to load, and what of states of `collect_state` this rank loads.

    The states may be those of any number of ranks, with or without shards.
    """
    if not isinstance(criterion, ShardedHead):
        return criterion, criterion_state, optimizer_state
    rows = criterion.own_rows
    optimizer_state = _each_of_head(optimizer_state, criterion, optimizer, rows)
    return criterion.loss, _each(criterion_state, rows), optimizer_state


def _each(state: State, change: Callable[[Tensor], Tensor]) -> State:
    """Change the tensors of a state."""
    return {
        name: change(value) if isinstance(value, Tensor) else value for name, value in state.items()
    }


def _each_of_head(
    state: State,
    head: ShardedHead,
    optimizer: torch.optim.Optimizer,
    change: Callable[[Tensor], Tensor],
) -> State:
    """Change the tensors that an optimizer's state holds for the parameters of the head."""
    in_head = {id(parameter) for parameter in head.parameters()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    entries = {
        number: _each(entry, change) if id(parameters[number]) in in_head else entry
        for number, entry in sorted(state["state"].items())
    }
    return state | {"state": entries}
