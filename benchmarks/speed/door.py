"""Compare the cost of refusing a mistyped flag, and of --help, with that of `import torch`.

python -m benchmarks.speed.door --rounds=7

The commands run in turns, each in a process of its own; what counts is the ratio of the median of
their CPU time, user and system, to that of `python -c "import torch"` in the same run.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import common
from benchmarks.common import Rounds
from metric_learning.common.cli import user_errors
from metric_learning.common.flags import Flag, parse_flags, path, positive

BASELINE = "import torch"
LIMIT = 1.3  # times the baseline
SCRIPTS = ("train_elem.py", "train_pair.py", "eval.py", "infer.py")
WORDS = {"a mistyped flag": ("--modell=ResNet18", 2), "--help": ("--help", 0)}
# What is measured: the arguments of Python, and the exit status.
COMMANDS: dict[str, tuple[list[str], int]] = {BASELINE: (["-c", BASELINE], 0)} | {
    f"{script}, {what}": ([script, word], status)
    for script in SCRIPTS
    for what, (word, status) in WORDS.items()
}
FLAGS = (
    Flag("rounds", positive, 7, "times that each command is measured"),
    Flag("json", path, None, "file to write all values to"),
)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Print the table in Markdown and return all values."""
    with user_errors():
        flags = parse_flags(__doc__, FLAGS, argv)
        result = common.begin(flags.json, argv, flags.values)
        for name in COMMANDS:
            measure(name)  # warms up: files come from memory, and bytecode is there

        rounds = common.in_turns(
            COMMANDS, flags.rounds, measure, lambda found: f"{found['cpu_seconds']:.3f} CPU seconds"
        )
        ratios = ratios_of(rounds)
        result |= {"methods": rounds, "ratios": ratios}
        common.keep(flags.json, result)

        above = [name for name, ratio in ratios.items() if ratio > LIMIT]
        conditions = (
            f"{flags.rounds} rounds in turns after a warm-up, each in a fresh process; the median "
            f"of CPU time counts, user and system. Above the limit of {LIMIT} times `{BASELINE}`: "
            f"{', '.join(above) or 'none'}."
        )
        used = {"all": common.versions("torch")}
        print(table(rounds, ratios), common.notes("door", argv, conditions, {}, used), sep="\n\n")
        return result


def measure(name: str) -> dict[str, Any]:
    """Run a command in a fresh process: its CPU and wall seconds.

    Raises:
        ValueError: its exit status is another one than expected.
    """
    words, expected = COMMANDS[name]
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *words], cwd=common.ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)  # it has been waited for

    if process.returncode != expected:
        reason = errors.decode(errors="replace").strip()[-200:]
        raise ValueError(
            f"{name}: expected exit status {expected}, found {process.returncode}: {reason}"
        )
    wall_seconds = time.perf_counter() - start
    return {"cpu_seconds": usage.ru_utime + usage.ru_stime, "wall_seconds": wall_seconds}


def ratios_of(rounds: Rounds) -> dict[str, float]:
    """Return the median CPU time of each command over that of the baseline."""
    medians = {
        name: statistics.median(each["cpu_seconds"] for each in found)
        for name, found in rounds.items()
    }
    return {name: seconds / medians[BASELINE] for name, seconds in medians.items()}


def table(rounds: Rounds, ratios: Mapping[str, float]) -> str:
    """Return the Markdown table: a row per command."""
    rows = [
        [
            name,
            f"{statistics.median(each['cpu_seconds'] for each in found):.3f}",
            f"{ratios[name]:.2f}",
            f"{statistics.median(each['wall_seconds'] for each in found):.3f}",
            ", ".join(f"{each['cpu_seconds']:.3f}" for each in found),
        ]
        for name, found in rounds.items()
    ]
    titles = ("command", "CPU s", f"times {BASELINE}", "wall s", "CPU s of each round")
    return common.markdown(titles, rows)


if __name__ == "__main__":
    main()
