"""What a run needs of its machine: the memory of a step, known before it, and the time to its end.

A step that does not fit the memory of a CPU raises no error: the system kills the process.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from metric_learning.common.memory import free_memory
from metric_learning.common.sizes import Size, sides, size_text
from metric_learning.engine.options.parts import MachineOptions
from metric_learning.engine.parallel.collectives import decide_on_main
from metric_learning.engine.train.step import Step, unchanged_buffers

SAMPLE = 2  # images, the fewest that batch norm takes
NEARLY_ALL = 0.8  # of the free memory; a step that takes more may still be killed
LONG = 3 * 24 * 3600.0  # seconds
MUCH = 0.2  # of the time of a step, spent on waiting for images
# Values that an optimizer keeps for each weight.
STATES = {torch.optim.SGD: 1, torch.optim.Adam: 2, torch.optim.AdamW: 2}


def memory_caveats(step: Step, size: tuple[int, int], num_steps: int) -> list[str]:
    """Warn where a step on the CPU takes nearly all free memory; ValueError where it takes more.

    Images have the height and width `size`. One small forward pass tells, and leaves no trace. Of
    several processes the first one decides for all.
    """
    if step.machine.device.type != "cpu" or num_steps == 0 or step.learner.is_on_features:
        return []
    return decide_on_main(step.machine.world, lambda: _judge_memory(step, size))


def _judge_memory(step: Step, size: tuple[int, int]) -> list[str]:
    free = free_memory()
    if free is None:
        return []
    batches, num_processes = step.batches, step.machine.world.size
    num_images = batches.train_batch_size // (num_processes * batches.accumulation_steps)
    at_once = min(num_images, batches.chunk_size or num_images)
    model, dtype = step.learner.model, step.machine.amp_dtype
    per_image, fixed = activation_bytes(model, size, dtype), weight_bytes(step)
    needed = num_processes * (at_once * per_image + fixed)
    if needed <= NEARLY_ALL * free:
        return []

    fitting = int((NEARLY_ALL * free / num_processes - fixed) / per_image)
    advice = "lower --image_shape or take a smaller --model"
    if fitting >= SAMPLE:
        advice = (
            f"lower --train_batch_size or --image_shape, or give --chunk_size={fitting}, which "
            "computes the same batch in pieces"
        )
    words = (
        f"a step of {at_once} images of {size_text(size)} takes about {needed / 1e9:.1f} GB of "
        f"memory, and {free / 1e9:.1f} GB are free"
    )
    if needed > free:
        raise ValueError(f"{words}: the system would end the process; {advice}")
    return [f"warning: {words}: the system may end the process. To be safe, {advice}"]


def activation_bytes(model: nn.Module, size: Size, dtype: torch.dtype | None) -> float:
    """Return the bytes that an image of a size takes between forward and backward pass.

    What autograd keeps, and the two largest gradients that meet in the backward pass. The network,
    on the CPU, computes in the half type `dtype`, or in float32.
    """
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # the tensor itself would keep its own graph, and that the weights

    own = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    images = torch.zeros(SAMPLE, 3, *sides(size)).to(memory_format=torch.channels_last)
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(unchanged_buffers(model))
        stack.enter_context(saved_tensors_hooks(note, lambda tensor: tensor))
        stack.enter_context(torch.autocast("cpu", dtype=dtype, enabled=dtype is not None))
        embeddings = model(images)  # keeps what was noted until all is counted

    sizes = [number for place, number in kept.items() if place not in own]
    del embeddings
    return (sum(sizes) + 2 * max(sizes, default=0)) / SAMPLE


def weight_bytes(step: Step) -> int:
    """Return the bytes of the gradients, and of what the optimizer will keep for them."""
    optimizer = step.learner.optimizer
    num_states = 0 if optimizer.state else STATES[type(optimizer)]
    return (1 + num_states) * sum(p.nbytes for p in step.shared + step.split if p.requires_grad)


class Pace:
    """How fast a run is, by the steps and the last test of this process.

    Attributes:
        step_seconds: of a step; 0 before that is known.
        test_seconds: of a test; 0 before the first.
    """

    def __init__(self, total: int, test_every: int) -> None:
        self._total, self._test_every = total, test_every
        self._is_said = self._is_waiting_said = False
        self.step_seconds = self.test_seconds = 0.0

    def reading_caveats(self, wait: float, machine: MachineOptions) -> list[str]:
        """Warn, once, where a GPU waits for images, `wait` seconds of a step, much of its time."""
        share = wait / self.step_seconds if self.step_seconds else 0.0
        if machine.device.type != "cuda" or share < MUCH or self._is_waiting_said:
            return []
        self._is_waiting_said = True
        return [
            f"warning: steps wait {share:.0%} of their time for images: raise --num_workers (it is "
            f"{machine.num_workers}), train from --cache=DIR, or crop by --augment_on=device"
        ]

    def seconds_left(self, step: int) -> float:
        """Return the time from a step to the end."""
        num_tests = 0
        if self._test_every and step < self._total:
            num_tests = -(-self._total // self._test_every) - step // self._test_every
        return (self._total - step) * self.step_seconds + num_tests * self.test_seconds

    def caveats(self, step: int) -> list[str]:
        """Warn, once, where the end is days away."""
        days = self.seconds_left(step) / (24 * 3600)
        if self._is_said or days * 24 * 3600 < LONG:
            return []
        self._is_said = True
        return [
            f"warning: at {self.step_seconds:.1f} sec a step the {self._total - step} to come "
            f"take {days:.0f} days: lower --total_iter_num, --train_batch_size or --image_shape, "
            "or take a smaller --model or a faster device"
        ]
