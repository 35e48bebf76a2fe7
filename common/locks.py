"""Locks between processes: files that one of them holds, and the kernel gives up with it."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def locked(
    file: Path, log: Callable[[str], object], reason: str, is_kept: bool = True
) -> Iterator[None]:
    """Hold the lock of a file, alone among all processes; where it waits for it, it logs why.

    The file and its folder are made where they are not there. Unless it `is_kept`, the file goes
    with the lock; all who hold it have to say the same.
    """
    with _held(file, lambda: log(f"{reason}, waiting for it"), is_kept):
        yield


@contextlib.contextmanager
def claimed(file: Path, refusal: str, is_kept: bool = True) -> Iterator[None]:
    """Hold the lock of a file as `locked` does; ValueError, the refusal, where another does."""

    def refuse() -> None:
        raise ValueError(refusal)

    with _held(file, refuse, is_kept):
        yield


@contextlib.contextmanager
def _held(file: Path, when_taken: Callable[[], object], is_kept: bool) -> Iterator[None]:
    """Hold the lock of a file; where another process does, call something, and wait."""
    file.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with file.open("a") as opened:
            try:
                fcntl.lockf(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                when_taken()
                fcntl.lockf(opened, fcntl.LOCK_EX)
            if not _is_at(opened.fileno(), file):
                continue  # who had it removed the file: another one is the lock now

            try:
                yield
            finally:
                if not is_kept:
                    file.unlink(missing_ok=True)
            return


def _is_at(descriptor: int, file: Path) -> bool:
    """Whether an open file is the one that has this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(file))
    except FileNotFoundError:
        return False
