"""One update of the weights by one batch: forward, loss, backward, optimizer."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from metric_learning.engine.parallel.devices import choose_amp
from metric_learning.engine.parallel.distributed import ComputeLoss, over_all_ranks, total, wrap
from metric_learning.engine.train.training import Training
from metric_learning.reader import ImageError
from metric_learning.reader.batches.loader import Batch, to_inputs

# Distinct from the streams of the samplers (1, 2, 3, 7), augmentation (4) and replacements (5).
_DRAW_STREAM = 6


@dataclass(frozen=True)
class Outcome:
    """What became of one batch.

    Attributes:
        figures: `loss` and the figures of the log line, () each, on the device.
        spread: 1 - |mean of the embeddings on the unit sphere|^2, () on the device: about the mean
            of 1 - cosine over all pairs of the batch, 0 where all embeddings point the same way.
        is_finite: the loss and all gradients are; otherwise the weights were not changed.
    """

    figures: dict[str, Tensor]
    spread: Tensor
    is_finite: bool


class Updater:
    """Updates the weights of a training by one batch after the other.

    The batch of this process is computed in `args.accumulation_steps` parts, each with a loss of
    its own, whose gradients are averaged: so one device does what as many would. With
    `args.chunk_size` the network sees at most so many images at once and the loss still sees all:
    a first pass without a graph gives the embeddings, the loss their gradients, and a second pass
    takes these to the weights, chunk by chunk (GradCache, Gao et al. 2021,
    https://arxiv.org/abs/2101.06983). That equals the plain update, but for batch norm in training
    mode, whose statistics are those of a chunk.

    The network draws (dropout, stochastic depth) from a stream that derives from seed, step, rank,
    part and chunk: nothing of it has to be saved.

    Args:
        training: what is trained; its step is not counted here.
        compute_loss: the step of the stage.
    """

    def __init__(self, training: Training, compute_loss: ComputeLoss) -> None:
        args, world, device = training.args, training.world, training.device
        self._training, self._compute_loss = training, compute_loss
        if getattr(args, "gather", False):
            self._compute_loss = over_all_ranks(compute_loss, world)
        self._amp_dtype = choose_amp(args.amp, device)
        self._network = wrap(training.model, world, device)
        self._criterion = wrap(training.criterion, world, device)
        self._replicas = [
            module
            for module in (self._network, self._criterion)
            if isinstance(module, DistributedDataParallel)
        ]
        if args.compile:
            self._network = compiled(self._network, device)
        is_split = getattr(training.criterion, "is_sharded", False)
        self._split = list(training.criterion.parameters()) if is_split else []
        self._shared = [] if is_split else list(training.criterion.parameters())
        self._shared += training.model.parameters()

    def update(self, batch: Batch) -> Outcome:
        """Update the weights by a batch of this process.

        They stay as they are where its loss or a gradient is not finite.
        """
        # What overflows in float16 would stay in the statistics of batch norm for good.
        may_overflow = self._training.scaler.is_enabled()
        buffers = list(self._training.model.buffers()) if may_overflow else []
        before = [buffer.clone() for buffer in buffers]
        self._training.optimizer.zero_grad()
        num_parts = self._training.args.accumulation_steps
        outcomes = []
        for number, part in enumerate(batch.split(num_parts)):
            with self._in_step(is_last=number == num_parts - 1):
                outcomes.append(self._backward(part, number))
        figures = {
            name: torch.stack([found[name] for found, _ in outcomes]).mean()
            for name in outcomes[0][0]
        }
        spread = torch.stack([spread for _, spread in outcomes]).mean()
        is_finite = self._apply(figures["loss"])
        if not is_finite:
            copy_all(before, buffers)
        return Outcome(figures, spread, is_finite)

    def _backward(self, batch: Batch, part: int) -> tuple[dict[str, Tensor], Tensor]:
        """Add the gradients of a part of the batch; return its figures and its spread."""
        chunk_size = self._training.args.chunk_size
        labels = batch.labels.to(self._training.device, non_blocking=True)
        num_chunks = math.ceil(len(labels) / chunk_size) if chunk_size else 1
        if num_chunks == 1:
            embeddings = self._embed(batch, part, 0)
            loss, figures = self._backward_loss(embeddings, labels)
            return {"loss": loss, **figures}, spread_of(embeddings)
        chunks = batch.split(num_chunks)
        with torch.no_grad(), unchanged_buffers(self._training.model):
            parts = [self._embed(chunk, part, number) for number, chunk in enumerate(chunks)]
        embeddings = torch.cat(parts).requires_grad_()  # BxD
        loss, figures = self._backward_loss(embeddings, labels)
        assert embeddings.grad is not None
        gradients = embeddings.grad.split([len(chunk.labels) for chunk in chunks])
        for number, (chunk, gradient) in enumerate(zip(chunks, gradients, strict=True)):
            with self._in_step(is_last=number == num_chunks - 1):
                self._differentiate(self._embed(chunk, part, number), gradient)
        return {"loss": loss, **figures}, spread_of(embeddings)

    def _embed(self, batch: Batch, part: int, chunk: int) -> Tensor:
        """Return the embeddings of images, float32 whatever the type of the forward pass."""
        training = self._training
        seed_draws(training.args.seed, training.step, training.world.rank, part, chunk)
        try:
            images = to_inputs(batch, training.preprocessing, training.device)  # Bx3xSxS
        except ImageError as error:
            if training.world.size == 1:
                raise
            raise ValueError(str(error)) from error  # the other ranks know nothing of it
        with torch.autocast(
            training.device.type, dtype=self._amp_dtype, enabled=self._amp_dtype is not None
        ):
            return self._network(images).float()

    def _backward_loss(
        self, embeddings: Tensor, labels: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        loss, figures = self._compute_loss(self._criterion, embeddings, labels)
        scaled = self._training.scaler.scale(loss / self._training.args.accumulation_steps)
        self._differentiate(scaled)
        return loss.detach(), figures

    def _differentiate(self, values: Tensor, gradient: Tensor | None = None) -> None:
        """Run the backward pass; where it computes activations again, statistics stay."""
        with (
            unchanged_buffers(self._training.model)
            if self._training.args.with_mem_opt
            else contextlib.nullcontext()
        ):
            values.backward(gradient)

    def _apply(self, loss: Tensor) -> bool:
        """Let the optimizer use the gradients if they are finite; return whether they are."""
        training, args = self._training, self._training.args
        scaler = training.scaler
        scaler.unscale_(training.optimizer)
        norm = self._gradient_norm(loss)
        is_finite = bool(norm.isfinite())  # waits for the device
        if is_finite:
            if args.clip_grad_norm:
                clip_grads_with_norm_(self._shared + self._split, args.clip_grad_norm, norm)
            scaler.step(training.optimizer)
            scaler.update()
            if training.ema is not None:
                training.ema.update(training.model, training.step + 1)
        elif scaler.is_enabled():
            # Not by what scaler.step finds on this rank alone: all ranks have to scale alike.
            scaler.update(scaler.get_scale() * scaler.get_backoff_factor())
            scaler.load_state_dict(scaler.state_dict() | {"_growth_tracker": 0})
        return is_finite

    def _gradient_norm(self, loss: Tensor) -> Tensor:
        """Norm of all gradients of all ranks, (); not finite where one, or a loss, is not."""
        own = norm_of(self._split).square() + 0 * loss
        return (norm_of(self._shared).square() + total(own, self._training.world)).sqrt()

    @contextlib.contextmanager
    def _in_step(self, is_last: bool) -> Iterator[None]:
        """Average gradients over all ranks only with the last backward pass of an update."""
        with contextlib.ExitStack() as stack:
            if not is_last:
                for replica in self._replicas:
                    stack.enter_context(replica.no_sync())
            yield


def compiled(network: nn.Module, device: torch.device) -> nn.Module:
    """Return a network that torch.compile translates when it is first called.

    Raises:
        ValueError: this machine lacks what compiling needs.
    """
    try:
        torch.compile(torch.neg)(torch.ones(1, device=device))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"--compile=True cannot be had here, leave it out: {reason}") from error
    return torch.compile(network)  # type: ignore[return-value]


def seed_draws(*key: int) -> None:
    """Seed torch's random numbers from non-negative integers."""
    sequence = np.random.SeedSequence([_DRAW_STREAM, *key])
    torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0]))


@contextlib.contextmanager
def unchanged_buffers(module: nn.Module) -> Iterator[None]:
    """Give a module its buffers back: batch norm counts a batch once, however often it is seen."""
    buffers = list(module.buffers())
    values = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        copy_all(values, buffers)


def copy_all(values: Iterable[Tensor], buffers: Iterable[Tensor]) -> None:
    """Copy values into as many buffers, in place."""
    for buffer, value in zip(buffers, values, strict=True):
        buffer.copy_(value)


def norm_of(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Return the Euclidean norm of the gradients of parameters, ()."""
    return get_total_norm([p.grad for p in parameters if p.grad is not None])


def spread_of(embeddings: Tensor) -> Tensor:
    """Return 1 - |mean of the embeddings (B, D) on the unit sphere|^2, see Outcome."""
    return 1.0 - F.normalize(embeddings.detach()).mean(0).square().sum()
