"""What the benchmarks share: words of the command line, clocks, turns, tables, and the machine.

It runs under other interpreters too: beside NumPy it imports nothing that has to be installed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent  # of the checkout
DISTRIBUTIONS = (
    *("torch", "torchvision", "timm", "triton", "pillow", "opencv-python-headless", "numpy"),
    *("numba", "faiss-cpu", "faiss-gpu", "pytorch-metric-learning", "open-metric-learning"),
)
LOOK_SECONDS = 0.01  # between two looks at the memory
Rounds = dict[str, list[dict[str, Any]]]  # name -> what each of its measurements found


def names_among(known: Iterable[str]) -> Callable[[str], tuple[str, ...]]:
    """Return a parser of comma-separated names of methods."""
    methods = tuple(known)

    def parse(text: str) -> tuple[str, ...]:
        for name in text.split(","):
            if name not in methods:
                expected = f"expected methods among {', '.join(methods)}"
                raise argparse.ArgumentTypeError(f"{expected}, found {name!r}")
        return tuple(dict.fromkeys(text.split(",")))

    return parse


def height_and_width(text: str) -> tuple[int, int]:
    """Parse `HEIGHT,WIDTH` in pixels."""
    height, _, width = text.partition(",")
    if not (height.isdecimal() and width.isdecimal()):
        raise argparse.ArgumentTypeError(f"expected HEIGHT,WIDTH, found {text!r}")
    return int(height), int(width)


def size_pairs(sizes: Sequence[int], dims: Sequence[int]) -> list[tuple[int, int]]:
    """Pair numbers of images with dimensions; ValueError where there are not as many of both."""
    if len(sizes) != len(dims):
        raise ValueError(f"expected as many sizes as dims, found {len(sizes)} and {len(dims)}")
    return list(zip(sizes, dims, strict=True))


def clocks() -> np.ndarray:
    """CPU seconds of this process and its children, and wall seconds."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu_seconds = sum(usage.ru_utime + usage.ru_stime for usage in usages)
    return np.array([cpu_seconds, time.perf_counter()])


def seconds_of(clocked: np.ndarray) -> dict[str, float]:
    """Name the difference of two `clocks`."""
    return dict(zip(("cpu_seconds", "wall_seconds"), clocked.tolist(), strict=True))


def memory(field: str) -> int:
    """Bytes of memory of this process: VmRSS now, RssAnon of that its own, VmHWM at most."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) * 1024  # "VmRSS:  123 kB"


def memory_of(job: Callable[[], object]) -> dict[str, float]:
    """Run a job; return its CPU seconds, and in GiB how far its memory grew at most.

    `private_gib` is what the process has for itself; `all_gib` counts pages of mapped files too,
    which the system takes back when it needs them. `process_gib` is the peak of the whole process.
    """
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = memory("RssAnon"), memory("VmRSS")
    peaks, has_ended = [before[0]], threading.Event()

    def watch() -> None:
        while not has_ended.wait(LOOK_SECONDS):
            peaks.append(max(peaks.pop(), memory("RssAnon")))

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = clocks()
    try:
        job()
    finally:
        has_ended.set()
        watcher.join()
    grown = {"private_gib": peaks[0] - before[0], "all_gib": memory("VmHWM") - before[1]}
    grown["process_gib"] = memory("VmHWM")
    cpu_seconds = seconds_of(clocks() - started)["cpu_seconds"]
    return {"cpu_seconds": cpu_seconds, **{name: size / 2**30 for name, size in grown.items()}}


def in_turns(
    names: Iterable[str], num_rounds: int, measure: Callable[[str], dict[str, Any]]
) -> Rounds:
    """Measure each once per round, one after the other; one with a `failure` not again."""
    rounds: Rounds = {name: [] for name in names}
    for turn in range(num_rounds):
        for name, found in rounds.items():
            if found and "failure" in found[-1]:
                continue
            found.append(measure(name))
            seen = found[-1].get("failure") or f"{found[-1]['cpu_seconds']:.3f} CPU seconds"
            print(f"round {turn + 1}, {name}: {seen}", file=sys.stderr)
    return rounds


def values_of(found: Iterable[Mapping[str, Any]], what: str, digits: int) -> str:
    """Return a value of each round, as a cell of a table."""
    return ", ".join(f"{each[what]:.{digits}f}" for each in found)


def run_apart(command: Sequence[str], num_threads: int | None = None) -> dict[str, Any]:
    """Run a command in a fresh process and return the JSON object that is its last line.

    With `num_threads` it computes on so many, and on no GPU.

    Raises:
        ValueError: it fails.
    """
    variables = os.environ | {"PYTHONPATH": str(ROOT)}
    if num_threads is not None:
        kinds = ("OMP", "OPENBLAS", "MKL", "NUMBA")
        variables |= {f"{kind}_NUM_THREADS": str(num_threads) for kind in kinds}
        variables["CUDA_VISIBLE_DEVICES"] = ""
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    if done.returncode != 0:
        reason = (done.stderr.strip() or "no message").splitlines()[-1]
        raise ValueError(f"failed with exit status {done.returncode}: {reason[:200]}")
    return json.loads(done.stdout.splitlines()[-1])


def versions() -> dict[str, str]:
    """Versions of Python, of what is installed of the distributions, and of NumPy's BLAS."""
    found = {"python": platform.python_version()}
    for name in DISTRIBUTIONS:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]  # type: ignore[index]
    return found | {"NumPy's BLAS": f"{blas['name']} {blas['version']}"}


def machine() -> str:
    """Describe the machine: CPU, threads, system."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    cpu = models[0] if models else platform.machine()
    return f"{cpu}, {num_threads()} threads, {platform.platform()}"


def num_threads() -> int:
    """How many threads this process may run on."""
    return len(os.sched_getaffinity(0))


def markdown(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown; all columns but the first and the last are numbers."""
    rule = "|---|" + "--:|" * (len(titles) - 2) + "---|"
    lines = [f"| {' | '.join(cells)} |" for cells in (titles, *rows)]
    return "\n".join([lines[0], rule, *lines[1:]])


def notes(
    module: str,
    argv: Sequence[str] | None,
    conditions: str,
    rounds: Rounds,
    jobs: Mapping[str, str | None] = MappingProxyType({}),
) -> str:
    """Return what is to be read with a table."""
    users: dict[str, list[str]] = {}
    for name, found in rounds.items():
        used = found[0].get("versions") or versions()
        users.setdefault(", ".join(map(" ".join, used.items())), []).append(name)

    command = shlex.join(sys.argv[1:] if argv is None else argv)
    lines = [f"`python -m benchmarks.speed.{module} {command}`: {conditions}", "", machine(), ""]
    lines += [*(f"- `{name}`: {job}" for name, job in jobs.items()), ""]
    lines += [f"Versions of {', '.join(names)}: {what}." for what, names in users.items()]
    return "\n".join(lines)
