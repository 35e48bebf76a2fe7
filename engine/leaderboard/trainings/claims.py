"""Who works on what, in a folder that processes on several machines share.

A claim is a file that names its owner, and whose owner counts up a number in it while it lives. One
that is released, or whose owner is dead, is followed by a file with the next number in its name,
which one process alone can add: the last file counts. Whether an owner on another machine is dead
is told by the count that stands still for a lease, by the clock of the one who looks: clocks are
never compared.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from metric_learning.common.atomic import add_once, write_text

LEASE = 60.0  # seconds that a count may stand still
BEATS = 6  # counts in that time


class Seen(NamedTuple):
    """What a claim of somebody else held when it was last looked at, and since when it does."""

    text: str
    since: float


class Claims:
    """The claims of a process in a folder, of which it holds one at a time at most.

    Args:
        folder: where all of them lie.
        lease: seconds that the count of an owner on another machine may stand still.
        clock: seconds from any start.
    """

    def __init__(
        self, folder: Path, lease: float = LEASE, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.folder, self.lease, self._clock = folder, lease, clock
        self._seen: dict[Path, Seen] = {}
        self._held: Path | None = None
        self._owner = {"owner": uuid.uuid4().hex, **own_process()}
        self._count = 0
        self._lock = threading.Lock()
        self._has_ended = threading.Event()

    def take(self, name: str) -> bool:
        """Claim what is called `name`, if nobody alive has."""
        assert self._held is None
        place = self.folder / name
        numbers = sorted(int(p.name) for p in place.glob("*") if p.name.isdecimal())
        if numbers and not self._is_free(place / str(numbers[-1])):
            return False
        path = place / str(numbers[-1] + 1 if numbers else 0)
        if not add_once(path, self._text()):
            return False
        self._held = path
        self._has_ended = threading.Event()
        threading.Thread(target=self._beat, args=(path, self._has_ended), daemon=True).start()
        return True

    def release(self) -> None:
        """Give up what is held: it is done, or somebody else may do it."""
        with self._lock:
            assert self._held is not None
            write_text(self._held, json.dumps({"owner": None}))
            self._held = None
        self._has_ended.set()

    def _text(self) -> str:
        return json.dumps({**self._owner, "count": self._count})

    def _beat(self, path: Path, has_ended: threading.Event) -> None:
        while not has_ended.wait(self.lease / BEATS):
            self._count += 1
            with self._lock, contextlib.suppress(OSError):  # the disk may be full for a while
                if self._held == path:
                    write_text(path, self._text())

    def _is_free(self, path: Path) -> bool:
        """Whether a claim was released, or its owner is dead or has stood still for a lease."""
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError):
            text = ""
        # What is damaged nobody counts in.
        with contextlib.suppress(ValueError, TypeError, KeyError, OverflowError):
            owner = json.loads(text)
            if owner["owner"] is None:
                return True
            if (owner["host"], owner["boot"]) == (self._owner["host"], self._owner["boot"]):
                return not is_alive(int(owner["pid"]), owner["started"])

        now, seen = self._clock(), self._seen.get(path)
        if seen is None or seen.text != text:
            self._seen[path] = Seen(text, now)
            return False
        return now - seen.since > self.lease


def own_process() -> dict[str, str | int]:
    """Return what tells this process from all others, on this and other machines."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = ""
    pid = os.getpid()
    return {"host": host_name(), "boot": boot, "pid": pid, "started": started_at(pid)}


def host_name() -> str:
    """Return the name of this machine, and of the container, if any, that numbers its processes."""
    try:
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def is_alive(pid: int, started: str) -> bool:
    """Whether the process of this machine with a number lives, and is the one that started then."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # that of another user
        return True
    return started_at(pid) == started


def started_at(pid: int) -> str:
    """Return when a process of this machine began, in ticks since its start; "" if unknown.

    A process that has ended, but that nobody has waited for, has begun never.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # a system without such files
        return ""
    return "never" if fields[0] in "ZX" else fields[19]
