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
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent  # of the checkout
Rounds = dict[str, list[dict[str, Any]]]  # name -> what each of its measurements found


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


def height_and_width(text: str) -> tuple[int, int]:
    """Parse `HEIGHT,WIDTH` in pixels."""
    height, _, width = text.partition(",")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise argparse.ArgumentTypeError(f"expected HEIGHT,WIDTH, found {text!r}")
    return int(height), int(width)


def clocks() -> np.ndarray:
    """CPU seconds of this process and its children, and wall seconds."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu_seconds = sum(usage.ru_utime + usage.ru_stime for usage in usages)
    return np.array([cpu_seconds, time.perf_counter()])


def memory(field: str) -> int:
    """Bytes of memory of this process: VmRSS now, VmHWM at most."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) * 1024  # "VmRSS:  123 kB"


def in_turns(
    names: Iterable[str],
    num_rounds: int,
    measure: Callable[[str], dict[str, Any]],
    describe: Callable[[dict[str, Any]], str],
) -> Rounds:
    """Measure each once per round, one after the other; one with a `failure` not again.

    What `describe` says of each measurement goes to stderr.
    """
    rounds: Rounds = {name: [] for name in names}
    for turn in range(num_rounds):
        for name, found in rounds.items():
            if found and "failure" in found[-1]:
                continue
            found.append(measure(name))
            print(f"round {turn + 1}, {name}: {describe(found[-1])}", file=sys.stderr)
    return rounds


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


def versions(*distributions: str) -> dict[str, str]:
    """Versions of Python and of what is installed of these distributions."""
    found = {"python": platform.python_version()}
    for name in distributions:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def machine() -> dict[str, Any]:
    """Describe the machine: CPU, cores, system."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.machine(),
        "threads": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
    }


def markdown(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown; all columns but the first and the last are numbers."""
    rule = "|---|" + "--:|" * (len(titles) - 2) + "---|"
    lines = [f"| {' | '.join(cells)} |" for cells in (titles, *rows)]
    return "\n".join([lines[0], rule, *lines[1:]])


def notes(
    module: str,
    argv: Sequence[str] | None,
    conditions: str,
    jobs: Mapping[str, str],
    versions_of: Mapping[str, Mapping[str, str]],
) -> str:
    """Return what is to be read with a table.

    Args:
        module: the benchmark, below `benchmarks.speed`.
        argv: its arguments, None for those of the process.
        conditions: what was measured, and how.
        jobs: what each method does.
        versions_of: the versions that each method ran with.
    """
    users: dict[str, list[str]] = {}
    for name, found in versions_of.items():
        described = ", ".join(f"{what} {which}" for what, which in found.items())
        users.setdefault(described, []).append(name)

    computer = machine()
    lines = [
        f"`python -m benchmarks.speed.{module} {command_line(argv)}`: {conditions}",
        "",
        f"{computer['cpu']}, {computer['threads']} threads, {computer['system']}.",
        "",
        *(f"- `{name}`: {job}." for name, job in jobs.items()),
        "",
        *(f"Versions of {', '.join(names)}: {what}." for what, names in users.items()),
    ]
    return "\n".join(lines)


def command_line(argv: Sequence[str] | None) -> str:
    """Return arguments as they are typed, None for those of the process."""
    return shlex.join(sys.argv[1:] if argv is None else argv)


def begin(
    file: str | None, argv: Sequence[str] | None, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what every result begins with; a file that cannot be written is an error at once."""
    if file:
        open(file, "a").close()
    words = command_line(argv)
    return {"command": words, "arguments": dict(arguments), "machine": machine()}


def keep(file: str | None, result: Mapping[str, Any]) -> None:
    """Write a result to its JSON file, if it has one."""
    if file:
        Path(file).write_text(json.dumps(result, indent=2) + "\n")
