"""Compare methods by a fair protocol: search settings on folds, train with seeds, test once.

python leaderboard.py --board=configs/boards/demo.yaml

python leaderboard.py --dataset=folder --data_dir=photos --minutes=60

Without a board: tries on your own images what fits into the minutes, and leaves the best in best/.

The same command goes on after any interruption, and several machines that share the folder of
--output_dir divide the work. --dry_run prints the trainings, --budget=smoke tries all of them in
minutes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from metric_learning.common.cli import user_errors
from metric_learning.common.flags import (
    Flag,
    boolean,
    grouped,
    natural,
    parse_flags,
    path,
    positive,
)
from metric_learning.engine.options.tables import DATA_FLAGS

LAUNCHERS = ("processes", "slurm", "local")


def budget(text: str) -> float | None:
    """Parse a factor of the lengths of all trainings; None for `smoke`, 1 for `full`."""
    word = text.strip().lower()
    if word in ("smoke", "full"):
        return None if word == "smoke" else 1.0
    try:
        factor = float(word)
    except ValueError:
        factor = 0.0
    if not 0 < factor < float("inf"):
        raise argparse.ArgumentTypeError(f"expected smoke, full or a factor, found {text!r}")
    return factor


def setting(text: str) -> tuple[str, str]:
    """Parse NAME=VALUE."""
    name, sign, value = text.removeprefix("--").partition("=")
    if not (name and sign and value):
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, found {text!r}")
    return name, value


FLAGS = (
    *grouped(
        "board",
        Flag("board", path, None, "YAML file of a board, or the name of one in configs/boards"),
        Flag("rows", str, None, "rows to compare, divided by ';'; default: all"),
        Flag("flag", setting, (), "NAME=VALUE, a flag of all trainings", repeats=True),
        Flag("budget", budget, 1.0, "smoke, full or a factor of the lengths of all trainings"),
        Flag("folds", positive, None, "folds of the training images; default: the board's"),
        Flag("trials", positive, None, "settings that each row tries first; default: the board's"),
        Flag("reserve", natural, None, "settings that follow them; default: the board's"),
        Flag("seeds", positive, None, "trainings with the chosen settings; default: the board's"),
        Flag("search", str, None, "default: the board's", ("sobol", "grid", "tpe")),
    ),
    *DATA_FLAGS,
    *grouped(
        "own data",
        Flag(
            "minutes", positive, None, "without a board: try what fits on --dataset, keep the best"
        ),
    ),
    *grouped(
        "run",
        Flag("output_dir", path, None, "folder of the results; default: output/boards/BOARD"),
        Flag("dry_run", boolean, False, "print the trainings and what they take, do nothing"),
        Flag("retry", boolean, False, "do trainings again that have failed"),
        Flag("reports", boolean, False, "write a report on the first seed of each row at the end"),
    ),
    *grouped(
        "machine",
        Flag(
            "jobs", positive, None, "processes; default: one per core, or per device of --devices"
        ),
        Flag("devices", str, None, "GPUs, such as 0,1,2,3: processes take them in turn"),
        Flag("launcher", str, "processes", "slurm, local: jobs of submitit", LAUNCHERS),
        Flag("launcher_option", setting, (), "NAME=VALUE of submitit's executor", repeats=True),
    ),
)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Compare, and return the table, see `results_of`."""
    with user_errors():
        flags = parse_flags(__doc__, FLAGS, argv)

        # torch and all else, only now
        from metric_learning.engine.leaderboard.leaderboard import compare, settle_comparison

        return compare(settle_comparison(flags))


if __name__ == "__main__":
    main()
