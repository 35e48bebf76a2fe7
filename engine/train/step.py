"""One update of the weights by one batch, and the means of what such steps find."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_value_, clip_grads_with_norm_, get_total_norm

from metric_learning.engine.options.parts import BatchOptions, MachineOptions, OptimizerOptions
from metric_learning.engine.parallel import collectives
from metric_learning.engine.parallel.devices import HostCopy, casting
from metric_learning.engine.parallel.world import World
from metric_learning.engine.train.learner import Learner
from metric_learning.engine.train.optimizers import start_momentum
from metric_learning.reader import ImageError
from metric_learning.reader.batches.loader import Batch, to_crops, to_inputs
from metric_learning.reader.preprocessing import Preprocessing

# Distinct from the streams of the samplers (1, 2, 3, 7), augmentation (4) and replacements (5).
_DRAW_STREAM = 6


class Outcome:
    """What a step found; on the host it is known when it is asked for, best a step later.

    Attributes:
        figures: `loss`, the figures of the log line and `spread` (see `spread_of`), () each, on
            the device.
    """

    def __init__(self, figures: dict[str, Tensor], is_finite: Tensor) -> None:
        self.figures = figures
        self._verdict = HostCopy(is_finite)

    def is_finite(self) -> bool:
        """Whether loss and gradients were, and so the weights changed; waits for that step."""
        return bool(self._verdict.numpy())


class Step:
    """Updates the weights of a learner by one batch after the other.

    The batch of this process is computed in `accumulation_steps` parts, each with a loss of its
    own, whose gradients are averaged: so one device does what as many would. With `chunk_size` the
    network sees at most so many images at once and the loss still sees all.

    The network draws (dropout, stochastic depth) from a stream that derives from seed, step, rank,
    part and chunk: nothing of it has to be saved. Of the `limits`, gradients are clipped by norm or
    value, and those of the backbone are dropped in the first steps of a warm-up of the head: so its
    optimizer state begins after these, as with ProxyNCA++'s second optimizer (Teh et al. 2020,
    https://arxiv.org/abs/2004.01113, train.py). Its batch norm learns statistics meanwhile, as
    there, unless --freeze_bn.

    Nothing in a step asks the device for a number, so that the host runs ahead of it: labels are
    asked in the host's memory, and whether all was finite is decided on the device.
    """

    def __init__(
        self,
        learner: Learner,
        stage_loss: collectives.StageLoss,
        preprocessing: Preprocessing,
        batches: BatchOptions,
        machine: MachineOptions,
        limits: OptimizerOptions,
    ) -> None:
        self.learner, self.preprocessing = learner, preprocessing
        self.batches, self.machine, self.limits = batches, machine, limits
        world = machine.world
        self.stage_loss = (
            collectives.over_all_ranks(stage_loss, world) if batches.gather else stage_loss
        )

        self.network = collectives.wrap(learner.network, world)
        self.criterion = collectives.wrap(learner.criterion, world)
        modules = (self.network, self.criterion)
        self.replicas = [m for m in modules if isinstance(m, DistributedDataParallel)]
        self.shared, self.split = learner.shared_parameters(), learner.split_parameters()
        self.trunk = learner.trunk_parameters() if limits.warm_head_steps else []
        if machine.compile:
            self.network = compiled(self.network, machine.device)

        # Both change before the weights do: statistics of batch norm, and what a loss remembers.
        self.statistics = Kept(learner.network.buffers())
        self.memories = Kept(learner.criterion.buffers())
        # A step whose values overflow is to leave no trace in these either.
        average = learner.ema.module.state_dict().values() if learner.ema is not None else ()
        self.average = Kept(average if learner.scaler.is_enabled() else ())

    def __call__(self, batch: Batch, step: int) -> Outcome:
        """Update the weights by a batch of this process, after `step` completed updates."""
        num_parts = self.batches.accumulation_steps
        found = []

        self.learner.optimizer.zero_grad()
        with self.undone_by_errors():
            for part, images in enumerate(self.placed(batch).split(num_parts)):
                labels = images.labels  # B, in the host's memory
                with self.averaging(part == num_parts - 1):
                    if 0 < self.batches.chunk_size < len(labels):
                        embeddings, loss, figures = self.backward_in_chunks(images, step, part)
                    else:
                        embeddings = self.embed(images, step, part)  # BxD, float32
                        loss, figures = self.stage_loss(self.criterion, embeddings, labels)
                        loss, figures = self.taught(loss, figures, embeddings, [images])
                        self.differentiate(self.scaled(loss))
                found.append({"loss": loss.detach(), **figures, "spread": spread_of(embeddings)})

            means = {name: torch.stack([each[name] for each in found]).mean() for name in found[0]}
            is_finite = self.apply_gradients(means["loss"], step)
        return Outcome(means, is_finite)

    def placed(self, batch: Batch) -> Batch:
        """Return a batch whose images are crops on the device, decoded once for all its chunks."""
        machine = self.machine
        try:
            return batch._replace(images=to_crops(batch, self.preprocessing, machine.device))
        except ImageError as error:
            if machine.world.size == 1:
                raise
            raise ValueError(str(error)) from error  # the other ranks know nothing of it

    def embed(self, batch: Batch, step: int, part: int, chunk: int = 0) -> Tensor:
        """Return the embeddings (B, D) of a batch, float32 whatever the forward pass has."""
        machine = self.machine
        seed_draws(machine.seed, step, machine.world.rank, part, chunk)
        inputs = to_inputs(batch, self.preprocessing, machine.device)  # Bx3xSxT, or features BxF

        with casting(machine.device, machine.amp_dtype, machine.tf32):
            embeddings: Tensor = self.network(inputs)
        return embeddings.float()

    def taught(
        self,
        loss: Tensor,
        figures: dict[str, Tensor],
        embeddings: Tensor,
        chunks: Sequence[Batch],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return loss and figures with what a teacher adds, if there is one."""
        teacher = self.learner.teacher
        if teacher is None:
            return loss, figures
        return teacher.join(loss, figures, embeddings, chunks, self.preprocessing)

    def scaled(self, loss: Tensor) -> Tensor:
        """Return what is differentiated for the loss of one of the parts of a batch."""
        return self.learner.scaler.scale(loss / self.batches.accumulation_steps)

    def differentiate(self, values: Tensor, gradient: Tensor | None = None) -> None:
        """Run the backward pass; where it computes activations again, statistics stay.

        Nothing is to do for values that no weight made, as those of a frozen network are.
        """
        if not values.requires_grad:
            return
        with contextlib.ExitStack() as stack:
            stack.enter_context(casting(self.machine.device, None, self.machine.tf32))
            if self.machine.recompute:
                stack.enter_context(unchanged_buffers(self.learner.network))
            torch.autograd.backward(values, gradient)

    def backward_in_chunks(
        self, batch: Batch, step: int, part: int
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Do the three lines of a part with at most `chunk_size` images in the network at once.

        A first pass without a graph gives the embeddings, the loss their gradients, and a second
        pass takes these to the weights, chunk by chunk (GradCache, Gao et al. 2021,
        https://arxiv.org/abs/2101.06983). That equals the plain update, but for batch norm in
        training mode, whose statistics are those of a chunk.
        """
        chunks = batch.split(math.ceil(len(batch.labels) / self.batches.chunk_size))
        with torch.no_grad(), unchanged_buffers(self.learner.network):
            parts = [self.embed(chunk, step, part, n) for n, chunk in enumerate(chunks)]
        embeddings = torch.cat(parts).requires_grad_()  # BxD
        loss, figures = self.stage_loss(self.criterion, embeddings, batch.labels)
        loss, figures = self.taught(loss, figures, embeddings, chunks)
        self.differentiate(self.scaled(loss))

        assert embeddings.grad is not None
        gradients = torch.split(embeddings.grad, [len(chunk.labels) for chunk in chunks])
        for n, (chunk, gradient) in enumerate(zip(chunks, gradients, strict=True)):
            with self.averaging(n == len(chunks) - 1):
                self.differentiate(self.embed(chunk, step, part, n), gradient)
        return embeddings, loss, figures

    def apply_gradients(self, loss: Tensor, step: int) -> Tensor:
        """Let the optimizer use the gradients if they are finite; return whether, () bool.

        Where they are not, the fused optimizer leaves all weights as they were.
        """
        learner, scaler = self.learner, self.learner.scaler
        scaler.unscale_(learner.optimizer)
        for parameter in self.trunk if step < self.limits.warm_head_steps else ():
            parameter.grad = None
        norm = self.gradient_norm(loss)
        is_finite = norm.isfinite()
        if self.limits.clip_grad_norm:
            clip_grads_with_norm_(self.shared + self.split, self.limits.clip_grad_norm, norm)
        if self.limits.clip_grad_value:
            clip_grad_value_(self.shared + self.split, self.limits.clip_grad_value)

        learner.is_whole = False  # until the step is counted
        self.average.keep()
        take_verdict(learner.optimizer, scaler, is_finite)
        scaler.step(learner.optimizer)
        scaler.update()
        if learner.ema is not None:
            learner.ema.update(learner.network, step + 1)
        if scaler.is_enabled():
            for kept in (self.statistics, self.average):
                kept.give_back(~is_finite)
        return is_finite

    def gradient_norm(self, loss: Tensor) -> Tensor:
        """Norm of all gradients of all ranks, (); not finite where one, or a loss, is not."""
        own = norm_of(self.split).square() + 0 * loss
        if self.machine.world.size > 1:
            own = collectives.total(own, self.machine.world)
        return (norm_of(self.shared).square() + own).sqrt()

    @contextlib.contextmanager
    def undone_by_errors(self) -> Iterator[None]:
        """Let a step that fails leave no trace: the run can be saved as it was before it."""
        self.statistics.keep()
        self.memories.keep()
        try:
            yield
        except Exception:
            self.statistics.give_back()
            self.memories.give_back()
            raise

    @contextlib.contextmanager
    def averaging(self, is_last: bool) -> Iterator[None]:
        """Average gradients over all ranks only with the last backward pass of an update."""
        with contextlib.ExitStack() as stack:
            for replica in self.replicas if not is_last else ():
                stack.enter_context(replica.no_sync())
            yield


class Meter:
    """Means of the figures of the `num_steps` steps since the last `flush`, and their seconds."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._sums: dict[str, Tensor] = {}
        self.num_steps = 0
        self.last_seconds = 0.0  # of the last step
        self._seconds = self._waited = 0.0
        self._mark = time.perf_counter()

    def add(self, values: dict[str, Tensor]) -> None:
        """Add the scalars of one step; they stay on the device until `flush`."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value
        self.num_steps += 1
        self._count_time()

    def _count_time(self) -> None:
        now = time.perf_counter()
        self.last_seconds = now - self._mark
        self._seconds += self.last_seconds
        self._mark = now

    def add_wait(self) -> None:
        """Note that a batch has come: it was waited for since the end of the last step."""
        self._waited += time.perf_counter() - self._mark

    def restart_clock(self) -> None:
        """Leave out the time since the last step: it was spent on tests and checkpoints."""
        self._mark = time.perf_counter()

    def state(self) -> dict[str, float]:
        """Return `num_steps` and the sums so far, averaged over all ranks; all call it."""
        if not self.num_steps:
            return {}
        sums = collectives.average(torch.stack(list(self._sums.values())), self._world).tolist()
        return {"num_steps": self.num_steps, **dict(zip(self._sums, sums, strict=True))}

    def restore(self, state: dict[str, float], device: torch.device) -> None:
        """Go on from what `state` returned; the time is not restored."""
        sums = dict(state)
        self.num_steps = int(sums.pop("num_steps", 0))
        self._sums = {name: torch.tensor(value, device=device) for name, value in sums.items()}

    def flush(self) -> tuple[dict[str, float], float]:
        """Return the means over all ranks and the seconds per step, and begin anew.

        Beside the means are the seconds that this process `wait`ed for the images of a step.
        """
        sums = torch.stack(list(self._sums.values()))
        means = collectives.average(sums / self.num_steps, self._world).tolist()
        self._count_time()  # reading the sums waited for the device
        named = dict(zip(self._sums, means, strict=True))
        named["wait"], seconds = (s / self.num_steps for s in (self._waited, self._seconds))
        self._sums, self.num_steps, self._seconds, self._waited = {}, 0, 0.0, 0.0
        return named, seconds


def take_verdict(
    optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, is_finite: Tensor
) -> None:
    """Tell a fused optimizer, and the scaler of the loss, whether the gradients () are finite.

    In place of what the scaler finds on this rank alone: all ranks have to step and scale alike.
    """
    if not optimizer.state:
        start_momentum(optimizer)
    overflows = (~is_finite).float()
    if scaler.is_enabled():
        for found in scaler._found_inf_per_device(optimizer).values():
            found.copy_(overflows)
    else:
        optimizer.grad_scale, optimizer.found_inf = None, overflows  # type: ignore[attr-defined]


def compiled(network: nn.Module, device: torch.device) -> nn.Module:
    """Return a network that torch.compile translates when it is first called, or ValueError."""
    try:
        torch.compile(torch.neg)(torch.ones(1, device=device))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"--compile=True cannot be had here, leave it out: {reason}") from error
    return torch.compile(network)  # type: ignore[return-value]


def seed_draws(*key: int) -> None:
    """Seed torch's random numbers from non-negative integers."""
    sequence = np.random.SeedSequence([_DRAW_STREAM, *key])
    seed = int(sequence.generate_state(1, np.uint64)[0])
    # torch.manual_seed would do the same, and note for GPUs that nobody uses where it was called,
    # which takes a millisecond.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)


class Kept:
    """Tensors, and what they held when they were kept."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self.tensors = list(tensors)
        self.values = [torch.empty_like(tensor) for tensor in self.tensors]

    def keep(self) -> None:
        """Take down what the tensors hold."""
        copy_all(self.tensors, self.values)

    def give_back(self, condition: Tensor | None = None) -> None:
        """Let the tensors hold what was taken down; where a condition () on the device is true."""
        if condition is None:
            copy_all(self.values, self.tensors)
            return
        for tensor, value in zip(self.tensors, self.values, strict=True):
            tensor.copy_(torch.where(condition, value, tensor))


@contextlib.contextmanager
def unchanged_buffers(module: nn.Module) -> Iterator[None]:
    """Give a module its buffers back: batch norm counts a batch once, however often it is seen."""
    kept = Kept(module.buffers())
    kept.keep()
    try:
        yield
    finally:
        kept.give_back()


@torch.no_grad()
def copy_all(sources: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
    """Copy tensors into as many others, in place; with one kernel per type and device."""
    kinds = [(source.dtype, source.device) for source in sources]
    for kind in set(kinds):
        places = [n for n, other in enumerate(kinds) if other == kind]
        torch._foreach_copy_([targets[n] for n in places], [sources[n] for n in places])


def norm_of(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Return the Euclidean norm of the gradients of parameters, ()."""
    return get_total_norm([p.grad for p in parameters if p.grad is not None])


def spread_of(embeddings: Tensor) -> Tensor:
    """Return 1 - |mean of the embeddings (B, D) on the unit sphere|^2, ().

    About the mean of 1 - cosine over all pairs of the batch; 0 where all point the same way.
    """
    return 1.0 - F.normalize(embeddings.detach()).mean(0).square().sum()
