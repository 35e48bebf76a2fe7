"""The processes that read images: how they start, and how they end."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader

from metric_learning.reader.sets.image_set import WorkerError

# How errors begin that say that PyTorch has lost a worker, or cannot receive what it hands over.
LOST_WORKER = (
    *("DataLoader worker (pid", "Pin memory thread exited"),
    *("Too many open files", "received 0 items of ancdata"),
)
SPARE_DESCRIPTORS = 8  # more than handing over a batch takes
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def start_workers(loader: DataLoader) -> Iterator[Any]:
    """Start the workers of a loader, all or none; the end of this process does not wait for them.

    They ignore signals to stop, so whatever is left of them at the end is killed. Until they do
    such signals are blocked, for in a process that was just forked they would mean this one.

    PyTorch's handler of SIGCHLD is not wanted: it would raise the error of a killed worker wherever
    the main process stands, such as in the middle of an update. Without it the loader finds out
    within 5 seconds of waiting for a batch.
    """
    before = set(multiprocessing.active_children())
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGCHLD)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    failure = ""
    try:
        batches = iter(loader)
    except (OSError, RuntimeError, MemoryError) as error:
        failure = getattr(error, "strerror", None) or str(error) or type(error).__name__
        end_workers(set(multiprocessing.active_children()) - before)
        with _quiet_finalizers():
            error.__traceback__ = None  # of frames that hold the half-started iterator
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if is_main:
            signal.signal(signal.SIGCHLD, handler)

    if failure:
        raise no_resources(f"a process that reads images cannot be started ({failure})")
    workers = set(multiprocessing.active_children()) - before
    if workers:
        Finalize(batches, end_workers, (workers,), exitpriority=0)
    return batches


def no_resources(what: str) -> WorkerError:
    """Return the error of something for which the machine has no process, memory or descriptor."""
    return WorkerError(
        f"{what}: lower --num_workers (0 reads without others), or allow more open files and "
        "processes (ulimit -n, -u)"
    )


def check_descriptors() -> None:
    """Raise OSError where too few descriptors are left to hand over a batch."""
    opened = []
    try:
        for _ in range(SPARE_DESCRIPTORS):
            opened.append(os.open(os.devnull, os.O_RDONLY))
    finally:
        for descriptor in opened:
            os.close(descriptor)


def end_workers(workers: Iterable[BaseProcess]) -> None:
    """Kill what still runs of worker processes; they have nothing to lose."""
    for worker in workers:
        if worker.is_alive():
            worker.kill()
            worker.join()


@contextlib.contextmanager
def _quiet_finalizers() -> Iterator[None]:
    """Print nothing of objects that fail when they are deleted, as a half-started iterator does."""
    hook = sys.unraisablehook
    sys.unraisablehook = lambda _: None
    try:
        yield
    finally:
        sys.unraisablehook = hook


def init_worker(worker: int) -> None:
    """Keep the worker on one thread: thread pools do not survive a fork and would compete.

    Signals to stop often reach all processes of a run; the main one decides, and ends its workers.
    """
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
