"""Compare the cost of refusing a mistyped flag, and of --help, with that of `import torch`.

python -m benchmarks.speed.door --rounds=7

The commands run in turns, each in a process of its own; what counts is the ratio of the median of
their CPU time, user and system, to that of `python -c "import torch"` in the same run.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Sequence

from benchmarks import common
from metric_learning.common.cli import user_errors
from metric_learning.common.flags import Flag, parse_flags, positive

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
FLAGS = (Flag("rounds", positive, 7, "times that each command is measured"),)


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Print the table in Markdown; return how many times that of the baseline each takes."""
    with user_errors():
        flags = parse_flags(__doc__, FLAGS, argv)
        for name in COMMANDS:
            measure(name)  # warms up: files come from memory, and bytecode is there
        rounds = common.in_turns(COMMANDS, flags.rounds, measure)

        cpu, wall = (
            {name: statistics.median(each[what] for each in rounds[name]) for name in rounds}
            for what in ("cpu_seconds", "wall_seconds")
        )
        ratios = {name: seconds / cpu[BASELINE] for name, seconds in cpu.items()}
        rows = [
            [name, f"{cpu[name]:.3f}", f"{ratio:.2f}", f"{wall[name]:.3f}"]
            + [common.values_of(rounds[name], "cpu_seconds", 3)]
            for name, ratio in ratios.items()
        ]
        titles = ("command", "CPU s", f"times {BASELINE}", "wall s", "CPU s of each round")

        above = [name for name, ratio in ratios.items() if ratio > LIMIT]
        conditions = (
            f"{flags.rounds} rounds in turns after a warm-up, each in a fresh process; the median "
            f"of CPU time counts, user and system. Above the limit of {LIMIT} times `{BASELINE}`: "
            f"{', '.join(above) or 'none'}."
        )
        notes = common.notes("door", argv, conditions, rounds)
        print(common.markdown(titles, rows), notes, sep="\n\n")
        return ratios


def measure(name: str) -> dict[str, float]:
    """Run a command in a fresh process: its CPU and wall seconds."""
    words, expected = COMMANDS[name]
    start = common.clocks()
    done = subprocess.run([sys.executable, *words], cwd=common.ROOT, capture_output=True, text=True)
    seconds = common.clocks() - start
    if done.returncode != expected:
        raise ValueError(
            f"{name}: expected exit status {expected}, found {done.returncode}: "
            f"{done.stderr.strip()[-200:]}"
        )
    return common.seconds_of(seconds)


if __name__ == "__main__":
    main()
