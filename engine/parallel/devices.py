"""Where and in which precision a run computes."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from metric_learning.common.log import log
from metric_learning.engine.parallel.world import World
from metric_learning.retrieval.counting.full_precision import full_precision, tf32

# glibc's mallopt: size of free memory that is given back, number of blocks that are mapped apart.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
SUPPORTED = ("cpu", "cuda")
LEAST_WORKERS, MOST_WORKERS = 2, 16
AHEAD_BYTES = 2**33  # of batches that are ready, which lie in shared and in pinned memory
GPU_BATCH = 64  # images at once from which on a GPU computes longer than it takes to tell it what


def choose_device(name: str, use_gpu: bool, world: World) -> torch.device:
    """Choose the device from --device and --use_gpu; says so where a wanted GPU is absent.

    A GPU becomes the current one. Raises ValueError where a device is not there, is of a type
    that is not supported, or one is for several processes.
    """
    if name == "auto":
        if not use_gpu:
            return torch.device("cpu")
        if not torch.cuda.is_available():
            if world.is_main:
                log("--use_gpu=True, but PyTorch finds no GPU here: running on the CPU")
            return torch.device("cpu")
        name = "cuda"

    if name == "cuda" and torch.cuda.is_available():
        if world.local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"expected a GPU per process, found {torch.cuda.device_count()} on this node: "
                "lower --nproc_per_node of torchrun, or compute with --use_gpu=False"
            )
        device = torch.device("cuda", world.local_rank)
    else:
        device = _existing(name, world)

    if device.type == "cuda":
        torch.cuda.set_device(device)  # what NCCL and pinned memory take
    return device


def _existing(name: str, world: World) -> torch.device:
    """Return a device by name, or raise ValueError."""
    try:
        device = torch.device(name)
        if device.type not in SUPPORTED:
            raise ValueError(
                f"--device={name} is not supported: expected {' or '.join(SUPPORTED)}; rankings "
                "need float64, which Apple's GPUs lack"
            )
        if device.index is not None and world.size > 1:
            raise ValueError(
                f"--device={name} is one device for {world.size} processes: leave it out, "
                "each process takes a GPU of its own"
            )

        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        first_line = str(error).splitlines()[0]
        raise ValueError(f"--device={name} cannot be used here: {first_line}") from error
    return device


def reading_workers(asked: int | None, device: torch.device, each_ahead: int = 0) -> int:
    """Return how many processes read images for this one: by default, for a GPU, all its cores.

    There are fewer where what each has ready, so many bytes, would be more than AHEAD_BYTES.
    """
    if asked is not None:
        return asked
    if device.type != "cuda":
        return LEAST_WORKERS
    num_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # of torchrun, on this node
    most = min(MOST_WORKERS, AHEAD_BYTES // max(1, each_ahead))
    return max(LEAST_WORKERS, min(most, usable_cores() // num_processes))


def usable_cores() -> int:
    """Return how many cores this process may use."""
    has_affinity = hasattr(os, "sched_getaffinity")  # Linux
    return len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1


def embedding_batch(size: int, is_given: bool, device: torch.device) -> int:
    """Return how many images are embedded at once: for a GPU at least GPU_BATCH, if none is given.

    That changes embeddings by float32's rounding at most.
    """
    return size if is_given or device.type != "cuda" else max(size, GPU_BATCH)


def place(model: nn.Module, device: torch.device) -> None:
    """Move a network to a device in channels-last order, in which convolutions are fastest."""
    model.to(device)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def choose_amp(amp: str, device: torch.device, world: World) -> torch.dtype | None:
    """Choose the type of the forward pass: a half one, or None for float32 throughout.

    `auto` is bfloat16 on a GPU that computes in it, which those before Ampere only emulate; there
    a line says what else there is. Raises ValueError where there is no TF32.
    """
    if amp in ("bfloat16", "float16"):
        return getattr(torch, amp)
    if amp == "tf32" and device.type != "cuda":
        raise ValueError(f"--amp=tf32 is a way in which GPUs compute, found {device}: leave it out")
    if amp == "auto" and device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16
        if world.is_main:
            log("--amp=auto: this GPU has no bfloat16, so in float32; --amp=float16 may be faster")
    return None


@contextlib.contextmanager
def casting(device: torch.device, dtype: torch.dtype | None, is_tf32: bool) -> Iterator[None]:
    """Compute the forward pass of a network in the precision of `choose_amp` in the body.

    Around a backward pass, which autocast is not for, give no `dtype`.
    """
    float32 = tf32() if is_tf32 else full_precision()
    with float32, torch.autocast(device.type, dtype, dtype is not None):
        yield


class HostCopy:
    """A copy of a tensor in the host's memory, to be read when the device has come to it."""

    def __init__(self, tensor: Tensor) -> None:
        self._event = torch.Event(tensor.device) if tensor.is_cuda else None
        self._copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        self._copy.copy_(tensor.detach(), non_blocking=tensor.is_cuda)
        if self._event is not None:
            self._event.record()

    def numpy(self) -> np.ndarray:
        """Return the values as an array; waits for what the device had to do before the copy."""
        if self._event is not None:
            self._event.synchronize()
        return self._copy.numpy()


def to_host(tensors: Iterable[Tensor]) -> Iterator[np.ndarray]:
    """Yield tensors as arrays, each when the work for the next one is in the device's queue."""
    pending: HostCopy | None = None
    for tensor in tensors:
        copy = HostCopy(tensor)
        if pending is not None:
            yield pending.numpy()
        pending = copy
    if pending is not None:
        yield pending.numpy()


def prepare_steps(device: torch.device) -> None:
    """Let this process make many steps of the same shapes fast: its memory, or cuDNN's choices.

    cuDNN tries its convolutions on the first images of a shape and keeps the fastest; not so where
    PyTorch was told to be deterministic, for which one that is may differ from run to run.
    """
    if device.type == "cpu":
        keep_freed_memory()
    cudnn = torch.backends.cudnn
    is_fixed = cudnn.deterministic or torch.are_deterministic_algorithms_enabled()
    if device.type == "cuda" and not is_fixed:
        cudnn.benchmark = True


def keep_freed_memory() -> bool:
    """Let this process keep the memory that a training step frees; only glibc (Linux) can.

    Otherwise glibc gives large blocks back and the system clears every page of them anew, which is
    a fifth of the time of a step of ResNet50 on a CPU.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    never = -1
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, never))
