"""Locks between processes: files that one of them holds, and the kernel gives up with it."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def locked(file: Path, log: Callable[[str], object], reason: str) -> Iterator[None]:
    """Hold the lock of a file, alone among all processes; where it waits for it, it logs why.

    The file and its folder are made where they are not there.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as opened:
        try:
            fcntl.lockf(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            log(f"{reason}, waiting for it")
            fcntl.lockf(opened, fcntl.LOCK_EX)
        yield
