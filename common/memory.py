"""The memory that this process may take: what is left, and what no machine like this one has."""

from __future__ import annotations

import os
import re
import resource
from pathlib import Path

PAGE = resource.getpagesize()
CGROUPS = Path("/sys/fs/cgroup")
# Names of a group's limit and use, and of what of its cache is given back, in versions 2 and 1.
FILES_OF_GROUP = (
    ("memory.max", "memory.current", ("inactive_file", "active_file")),
    (
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        ("total_inactive_file", "total_active_file"),
    ),
)


def free_memory(process: Path = Path("/proc/self"), groups: Path = CGROUPS) -> int | None:
    """Return how many bytes this process may still take; None where nothing tells.

    On Linux the least of what the machine has without swapping, what is left of the limits of its
    control groups (containers, batch systems) and of `ulimit -v`.
    """
    found = re.search(r"^MemAvailable:\s*(\d+) kB", _read(process.parent / "meminfo"), re.M)
    limits = [1024 * int(found[1])] if found else []
    for line in _read(process / "cgroup").splitlines():
        kinds, _, path = line.partition(":")[2].partition(":")
        if kinds in ("", "memory"):
            limits += _left_in_groups(groups / kinds, path)

    address_space = resource.getrlimit(resource.RLIMIT_AS)[0]
    used = _read(process / "statm").split()
    if address_space != resource.RLIM_INFINITY and used:
        limits.append(max(0, address_space - PAGE * int(used[0])))
    return min(limits, default=None)


def refuse_too_large(num_bytes: int, what: str) -> None:
    """Raise ValueError where something alone needs more bytes than the machine has in all."""
    try:
        available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):  # a system that does not tell
        return
    if num_bytes > available:
        raise ValueError(
            f"{what} needs {num_bytes / 1e9:,.0f} GB of memory, this machine has "
            f"{available / 1e9:,.0f}: give less"
        )


def _left_in_groups(root: Path, path: str) -> list[int]:
    """Return what is left of the limits of a control group and of those that it lies in."""
    own = root / path.strip("/")
    inside = [own, *own.parents][: len(own.parts) - len(root.parts) + 1]
    return [
        max(0, int(limit) - int(used) + _cached(folder, names))
        for folder in inside
        for limit_file, used_file, names in FILES_OF_GROUP
        if (limit := _read(folder / limit_file).strip()).isdigit()
        and (used := _read(folder / used_file).strip()).isdigit()
    ]


def _cached(folder: Path, names: tuple[str, ...]) -> int:
    """Return the bytes of files that a group has read, which are given back when others need it."""
    rows = (line.split() for line in _read(folder / "memory.stat").splitlines())
    return sum(int(row[1]) for row in rows if len(row) == 2 and row[0] in names)


def _read(file: Path) -> str:
    """Return the text of a file, empty where there is none."""
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
