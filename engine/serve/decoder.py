"""Images of strangers, decoded in a process of its own.

What somebody uploads may be made to take a decoder's time, memory or life. Here it takes those of a
process that is ended after some seconds, is held to so much memory, and is replaced.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import queue
import signal
from collections.abc import Iterator
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from metric_learning.reader.sets.image_set import Decoding, ImageError, decode_image

UPLOAD = "the upload"  # in place of a path
BYTES_PER_PIXEL = 24  # that decoding takes at most, with room for its copies
OTHER_BYTES = 2**29  # that a decoding process may take beside
# They are copies of one process that has nothing of this one, and has imported what they need: so
# the one that takes the place of another is there at once, and they share their memory.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__])


def start_early() -> None:
    """Let the process import that the others are copies of, while this one does something else."""
    forkserver.ensure_running()


class Decoders:
    """Processes that turn the bytes of image files into pixels, each one image at a time.

    Args:
        count: processes; more callers wait.
        decoding: limit of pixels, and what becomes of transparent ones.
        seconds: that an image may take.
    """

    def __init__(self, count: int, decoding: Decoding, seconds: float) -> None:
        self.seconds = seconds
        self._all = [_Process(decoding) for _ in range(count)]
        self._free: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        for process in self._all:
            self._free.put(process)

    def __call__(self, data: bytes) -> np.ndarray:
        """Decode an image to (H, W, 3) uint8 RGB; ImageError where it cannot be, or not in time."""
        with self._one() as process:
            return process.decode(data, self.seconds)

    @contextlib.contextmanager
    def _one(self) -> Iterator[_Process]:
        process = self._free.get()
        try:
            yield process
        finally:
            self._free.put(process)

    def close(self) -> None:
        """End the processes."""
        for process in self._all:
            process.end()


class _Process:
    """One process, started again where it has ended."""

    def __init__(self, decoding: Decoding) -> None:
        self._decoding = decoding
        self._start()

    def _start(self) -> None:
        self._connection, theirs = CONTEXT.Pipe()
        arguments = theirs, tuple(self._decoding)
        self._process = CONTEXT.Process(target=_decode_all, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        self._is_ready = False

    def decode(self, data: bytes, seconds: float) -> np.ndarray:
        """Decode an image, see `Decoders`."""
        try:
            if not self._is_ready:  # its start takes a time of its own, which is not the image's
                self._connection.recv_bytes()
                self._is_ready = True
            self._connection.send_bytes(data)
            if not self._connection.poll(seconds):
                raise ImageError(f"cannot read {UPLOAD}: it takes more than {seconds:g} seconds")
            found: dict[str, Any] = json.loads(self._connection.recv_bytes())
            if "error" in found:
                raise ImageError(found["error"])
            pixels = self._connection.recv_bytes()

        except ImageError as error:
            if "seconds" in str(error):
                self._again()
            raise
        except (EOFError, OSError) as error:
            self._again()
            raise ImageError(f"cannot read {UPLOAD}: its decoder ended") from error
        return np.frombuffer(pixels, np.uint8).reshape(found["shape"])

    def _again(self) -> None:
        self.end()
        self._start()

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()
        self._connection.close()


def _decode_all(connection: Connection, decoding: tuple[Any, ...]) -> None:
    """Decode image after image, until nobody is there to ask: what a decoding process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the server's, which ends this
    chosen = Decoding(*decoding)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # where decoders write what they think of an image
    _limit_memory(chosen.max_pixels * 10**6 * BYTES_PER_PIXEL + OTHER_BYTES)
    connection.send_bytes(b"ready")

    while True:
        try:
            data = connection.recv_bytes()
        except (EOFError, OSError):
            return
        try:
            pixels = decode_image(data, UPLOAD, chosen)
        except ImageError as error:
            words = str(error).replace(f"image {UPLOAD}", UPLOAD, 1)
            connection.send_bytes(json.dumps({"error": words}).encode())
            continue
        connection.send_bytes(json.dumps({"shape": pixels.shape}).encode())
        connection.send_bytes(np.ascontiguousarray(pixels).data.cast("B"))


def _limit_memory(more: int) -> None:
    """Limit the memory of this process to what it has and so many bytes more, on Linux."""
    statistics = Path("/proc/self/statm")
    if not statistics.is_file():
        return
    import resource

    now = int(statistics.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + more, now + more))
