"""What a dump says on the screen: the reference's lines, in the order of the images; progress."""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from metric_learning.common.log import log, show
from metric_learning.engine.embed.dump.digits import to_texts
from metric_learning.engine.embed.dump.layout import pieces_of
from metric_learning.engine.embed.dump.partial import Partial
from metric_learning.engine.embed.dump.plan import CLASSES, SCORES
from metric_learning.engine.embed.dump.precision import to_float32
from metric_learning.engine.run.lines import duration

LINES_AT_ONCE = 256  # that are one part
MOST_WAITING = 8  # parts that are made and not yet printed, or wait to be made
PROGRESS_SECONDS = 10.0  # between lines of progress


class Lines:
    """Prints the lines of the images, as far as all before them are done too.

    Images that cannot be read have none, and no number. The lines are made in a thread, beside the
    network, and printed in the main one, so that none is left half printed when that is stopped.
    """

    def __init__(self, partial: Partial, is_printing: bool) -> None:
        self._partial, self._is_printing = partial, is_printing
        self._next_chunk = self._num_lines = 0
        self._columns = {
            column.stem: column for column in partial.plan.columns if column.stem != "exact"
        }
        self._thread = ThreadPoolExecutor(1, "lines")
        self._waiting: deque[Future[str]] = deque()

    def advance(self) -> None:
        """Print the lines that are made, and have those made of what has been done since."""
        while self._is_printing and self._next_chunk in self._partial.done:
            rows = self._partial.plan.chunk(self._next_chunk)
            broken = {number for number, _, _ in self._partial.done[self._next_chunk]}
            for part in pieces_of(rows, LINES_AT_ONCE):
                is_read = np.array([row not in broken for row in part], bool)
                made = self._thread.submit(self._make, part, is_read, self._num_lines)
                self._waiting.append(made)
                self._num_lines += int(is_read.sum())
                self._print(MOST_WAITING)
            self._next_chunk += 1
        while self._waiting and self._waiting[0].done():
            self._print(len(self._waiting) - 1)

    def finish(self) -> None:
        """Print what is left."""
        self._print(0)

    def close(self) -> None:
        """End the thread; lines that wait are not printed."""
        self._thread.shutdown(cancel_futures=True)

    def _print(self, most: int) -> None:
        """Print lines, when they are made, until at most so many parts of them wait."""
        while len(self._waiting) > most:
            lines = self._waiting.popleft().result()
            if lines:
                show(lines)

    def _make(self, rows: range, is_read: np.ndarray, first: int) -> str:
        """Return the lines of images that are read, numbered from `first` on."""
        values = {
            stem: self._partial.read(column, rows)[is_read]
            for stem, column in self._columns.items()
        }

        texts = to_texts(to_float32(values["features"], values.get("scales")))
        lines = []
        for row, text in enumerate(texts):
            name = f"Test-{first + row}"
            lines.append(f"{name}-feature: {text}")
            if SCORES in values:
                score, best = values[SCORES][row, 0], values[CLASSES][row, 0]
                lines.append(f"{name}-score: [{score:.6f}], class [{best}]")
        return "\n".join(lines)


class Progress:
    """Logs, now and then, how many images are done, how fast, and how many are left out."""

    def __init__(self, partial: Partial) -> None:
        self._partial = partial
        self._begun = self._told = time.monotonic()
        self._before = self._count()

    def _count(self) -> int:
        return sum(len(self._partial.plan.chunk(chunk)) for chunk in self._partial.done)

    def tell(self) -> None:
        """Log a line, if the last one is long ago."""
        now = time.monotonic()
        if now - self._told < PROGRESS_SECONDS:
            return
        self._told = now
        count, total = self._count(), self._partial.plan.num_images
        rate = (count - self._before) / (now - self._begun)
        num_broken = sum(map(len, self._partial.done.values()))
        left = duration((total - count) / rate) if rate else "unknown"
        log(
            f"{count} of {total} images, {rate:.1f} images/s, eta {left}, {num_broken} unreadable "
            "and left out"
        )
