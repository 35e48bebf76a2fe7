"""How the scripts end: what users or the machine cause becomes one line and exit status 2."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from collections.abc import Iterator
from typing import NoReturn

from metric_learning.common.names import printable

# What a process finds whose peer is gone: gloo's words, then NCCL's, then those of the rendezvous.
LOST_PEER = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Timed out waiting",
    "gloo/transport",
    "remote process exited",
    "communicator was aborted",
    "client socket has timed out",
)
FULL_GPU = ("CUDA error: out of memory", "STATUS_ALLOC_FAILED")
GPU_FAULTS = (
    "CUDA error",
    "cuDNN error",
    "CUDNN_STATUS",
    "CUBLAS_STATUS",
    "NCCL error",
    "HIP error",
)
SMALLER = "lower the batch size (in a test that of the test), --image_shape or the model"
CPU_MEMORY = "DefaultCPUAllocator"  # stands in torch's error about too little memory
OTHER_RANKS_WAIT = 5  # seconds


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turn user errors and faults of the machine into one line on stderr and exit status 2.

    User errors are ValueError and OSError; METRIC_LEARNING_TRACEBACK=1 shows where they come from.
    """
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()  # fails here, or with a traceback at the end of the interpreter

    except BrokenPipeError:
        drop_stdout()
        sys.exit(1)
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        message = describe(error)
        if message is None or os.environ.get("METRIC_LEARNING_TRACEBACK"):
            raise
        fail(message)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def refuse_torchrun() -> None:
    """Raise ValueError in each of several processes of torchrun, which would do the same work."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count > 1:
        raise ValueError(
            f"this command works in one process, found {count}: start it without torchrun"
        )


def describe(error: Exception) -> str | None:
    """Say in one line what a user or the machine did to cause an error; None: neither did."""
    words = str(error)
    if isinstance(error, ValueError | OSError):
        return _one_line(error)
    if any(lost in words for lost in LOST_PEER):
        return "another process of this run ended or cannot be reached: see its message"
    # The type is torch's, which need not be imported here.
    if type(error).__name__ == "OutOfMemoryError" or any(full in words for full in FULL_GPU):
        return f"the GPU has too little memory: {SMALLER}, or compute with --use_gpu=False"
    if isinstance(error, MemoryError) or CPU_MEMORY in words or "can't allocate memory" in words:
        return _too_little_memory(error)
    if "can't start new thread" in words:
        return "no further thread can be started: lower --num_workers, or end other programs"

    first_line = words.partition("\n")[0]
    if any(fault in words for fault in GPU_FAULTS):
        return f"the GPU failed ({first_line}): start again, and see its driver's log (dmesg)"
    return None


def drop_stdout() -> None:
    """Send stdout nowhere, so that no later write or flush of it fails."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError, AttributeError):  # no file of the system
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def _too_little_memory(error: BaseException) -> str:
    """Say how much was asked for, where NumPy or torch tells it, and what makes it less."""
    sizes = re.search(r"allocate (\d+ bytes|[\d.]+ \w+)", str(error))
    asked = f" for {sizes[1]} at once" if sizes else ""
    return (
        f"this machine has too little memory{asked}: lower the batch size, --embedding_size, "
        "--image_shape or the number of classes or images"
    )


def fail(message: str) -> NoReturn:
    """Print `error: message` on stderr and exit with status 2.

    Of the processes that torchrun started, the first prints at once. The others wait first: if it
    has failed too, torchrun ends them meanwhile, and what may be their own error alone is printed.
    """
    rank = int(os.environ.get("RANK", "0"))
    if rank:
        time.sleep(OTHER_RANKS_WAIT)
        message = f"rank {rank}: {message}"
    # What an argument or a name holds may not break the line.
    message = printable(message, getattr(sys.stderr, "encoding", None) or "utf-8")
    with contextlib.suppress(OSError):  # its terminal may be gone
        print(f"error: {message}", file=sys.stderr)
    try:
        sys.stdout.flush()
    except (OSError, ValueError, AttributeError):  # the last where there is none
        drop_stdout()
    sys.exit(2)


def _one_line(error: ValueError | OSError) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())
