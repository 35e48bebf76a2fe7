"""What the benchmarks share: flags of methods, and what a machine is."""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


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
