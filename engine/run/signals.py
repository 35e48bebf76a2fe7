"""SIGTERM and SIGINT stop a training between two steps, all its ranks between the same two."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from metric_learning.engine.parallel.collectives import first_error, largest
from metric_learning.engine.parallel.world import World
from metric_learning.reader import ImageError, WorkerError
from metric_learning.reader.batches.loader import Batch, ImageLoader

SIGNALS = (signal.SIGTERM, signal.SIGINT)
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

    def agreed(self, loader: ImageLoader, note: Callable[[Batch], object]) -> Iterator[Batch]:
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
    """Let SIGTERM and SIGINT end the process at once in the body, which can be done again."""
    return _handled_by(signal.SIG_DFL, signal.default_int_handler)


@contextlib.contextmanager
def noted_signals(world: World) -> Iterator[StopRequest]:
    """Note SIGTERM and SIGINT in the body; only the main thread can, in others nothing changes."""
    request = StopRequest(world)
    with _handled_by(request.receive, request.receive):
        yield request


@contextlib.contextmanager
def _handled_by(*handlers: Any) -> Iterator[None]:
    """Let a handler per signal of SIGNALS handle it in the body; in the main thread alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {
        number: signal.signal(number, handler)
        for number, handler in zip(SIGNALS, handlers, strict=True)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
