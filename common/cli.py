"""How the scripts end: user errors become one line and exit status 2."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import time
from collections.abc import Iterator
from typing import NoReturn

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
CPU_MEMORY = "DefaultCPUAllocator"  # stands in torch's error about too little memory
OTHER_RANKS_WAIT = 5  # seconds


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turn user errors, too little memory and a lost process into one line and exit status 2.

    User errors are ValueError and OSError; METRIC_LEARNING_TRACEBACK=1 shows where they come from.
    Meanwhile names that stdout and stderr cannot encode are printed as escapes.
    """
    _print_all_names()
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (ValueError, OSError) as error:
        if os.environ.get("METRIC_LEARNING_TRACEBACK"):
            raise
        fail(_one_line(error))
    except MemoryError as error:
        fail(_too_little_memory(error))
    except RuntimeError as error:
        if CPU_MEMORY in str(error):
            fail(_too_little_memory(error))
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which need not be imported here
            fail(
                "the GPU has too little memory: lower the batch size, --image_shape or the model, "
                "or compute with --use_gpu=False"
            )

        is_lost = any(words in str(error) for words in LOST_PEER)
        if not is_lost or os.environ.get("METRIC_LEARNING_TRACEBACK"):
            raise
        fail("another process of this run ended or cannot be reached: see its message")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _print_all_names() -> None:
    """Let stdout and stderr write file names that are no text in their encoding."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


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
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def _one_line(error: ValueError | OSError) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())
