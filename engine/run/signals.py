"""Signals stop a training between two steps, all its ranks between the same two."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from metric_learning.engine.parallel.collectives import first_error, largest
from metric_learning.engine.parallel.world import World
from metric_learning.reader import ImageError, WorkerError
from metric_learning.reader.batches.loader import Batch, ImageLoader
from metric_learning.reader.batches.views import FeatureBatches

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
GRACE = 2.0  # seconds in which a process that is interrupted twice may end by itself
FAILURE = 1000  # above the number of every signal


class Stopped(Exception):
    """All ranks stop, because a signal asked one of them to; says which signal."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)


class StopRequest:
    """What signals have asked of this process: `received`, the number of the first, or 0."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.received = 0
        self._is_interrupted = False

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: note it; a second SIGINT stops at once.

        A SIGTERM that follows a SIGINT does not: torchrun sends one after Ctrl-C.
        """
        if number == signal.SIGINT:
            if self._is_interrupted:
                raise KeyboardInterrupt
            self._is_interrupted = True
        self.received = self.received or number

    @contextlib.contextmanager
    def agreement(self) -> Iterator[None]:
        """End alike on all ranks what each does for itself, such as reading a batch.

        Raises Stopped where a rank was asked to stop, and what a rank's body raises for an image.
        """
        failure: Exception | None = None
        try:
            yield
        except (ImageError, WorkerError) as error:
            failure = error
        verdict = largest(FAILURE if failure else self.received, self._world)
        if verdict == FAILURE:
            raise first_error(failure, self._world)
        if verdict:
            raise Stopped(verdict)

    def agreed(
        self, loader: ImageLoader | FeatureBatches, note: Callable[[Batch], object]
    ) -> Iterator[Batch]:
        """Yield the batches of a loader, and note them; all ranks agree to take each.

        They agree before the step and not after it, since a rank that could not read its batch
        would leave the others waiting inside the step.
        """
        batches = iter(loader)
        for _ in range(len(loader)):
            with self.agreement():
                batch = next(batches)
                note(batch)
            yield batch


def acting_signals() -> contextlib.AbstractContextManager[None]:
    """Let signals to stop end the process at once in the body, which can be done again."""
    return _handled_by(signal.SIG_DFL, signal.default_int_handler, signal.SIG_DFL)


@contextlib.contextmanager
def noted_signals(world: World) -> Iterator[StopRequest]:
    """Note signals to stop in the body; only the main thread can, in others nothing changes."""
    request = StopRequest(world)
    with _handled_by(*[request.receive] * len(SIGNALS)), _ended_by_second_interrupt():
        yield request


@contextlib.contextmanager
def _handled_by(*handlers: Any) -> Iterator[None]:
    """Let a handler per signal of SIGNALS handle it in the body; in the main thread alone.

    SIGHUP stays ignored where it is, as by nohup: what is started so outlives its terminal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {
        number: signal.signal(number, handler)
        for number, handler in zip(SIGNALS, handlers, strict=True)
        if not (number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _ended_by_second_interrupt() -> Iterator[None]:
    """End the process at a second SIGINT in the body, wherever it stands; in the main thread alone.

    Python's handlers wait until the main thread comes back to a line of Python, and take all that
    came meanwhile for one: a second Ctrl-C within a long backward pass would be lost. What the
    system itself writes for every signal is not, and another thread reads it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    reader, writer = socket.socketpair()
    writer.setblocking(False)
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=_end_at_second_interrupt, args=(reader,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        writer.send(b"\0")  # closing is not enough, since processes that were forked have it too
        thread.join()
        reader.close()
        writer.close()


def _end_at_second_interrupt(reader: socket.socket) -> None:
    """Read numbers of signals, until 0; after a second SIGINT end within GRACE, at a third now."""
    count = 0
    while count < 3:
        try:
            received = reader.recv(64)
        except TimeoutError:
            break
        if 0 in received:
            return
        count += received.count(signal.SIGINT)
        if count == 2:
            reader.settimeout(GRACE)

    with contextlib.suppress(OSError):
        print("interrupted", file=sys.stderr, flush=True)
    os._exit(128 + signal.SIGINT)
