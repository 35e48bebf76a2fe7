"""What the benchmarks share: flags of methods, clocks and memory, and what a machine is."""

from __future__ import annotations

import argparse
import os
import platform
import resource
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np


def names_among(known: Iterable[str]) -> Callable[[str], tuple[str, ...]]:
    """Return a parser of comma-separated names of methods."""
    methods = tuple(known)

    def parse(text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        unknown = [name for name in names if name not in methods]
        if unknown:
            raise argparse.ArgumentTypeError(
                f"expected methods among {', '.join(methods)}, found "
                f"{', '.join(map(repr, unknown))}"
            )
        return tuple(dict.fromkeys(names))

    return parse


def machine() -> dict[str, Any]:
    """Describe the machine: CPU, cores, system."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.machine(),
        "threads": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
    }


def clocks() -> np.ndarray:
    """CPU seconds of this process and its children, and wall seconds."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu_seconds = sum(usage.ru_utime + usage.ru_stime for usage in usages)
    return np.array([cpu_seconds, time.perf_counter()])


def memory(field: str) -> int:
    """Bytes of memory of this process: VmRSS now, VmHWM at most."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) * 1024  # "VmRSS:  123 kB"
