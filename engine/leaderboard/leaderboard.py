"""What leaderboard.py does: read a board, do what is open of it, and print its table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metric_learning.common.flags import Flags, shown
from metric_learning.common.log import log, show
from metric_learning.common.outputs import Kind, prepare_folder
from metric_learning.engine.leaderboard.board import Changes, read_board
from metric_learning.engine.leaderboard.dry_run import check_commands, foresee, print_trainings
from metric_learning.engine.leaderboard.formats import markdown
from metric_learning.engine.leaderboard.launch import Machines, run_board
from metric_learning.engine.leaderboard.origin import ORIGIN, check_origin, look_at_data
from metric_learning.engine.leaderboard.plan import Plan
from metric_learning.engine.options.tables import DATA_FLAGS

BOARDS = Path("configs/boards")
PROTOCOL_FLAGS = ("folds", "trials", "reserve", "seeds", "search")
KIND = Kind(
    "the results of a board",
    lambda path: None if (path / ORIGIN).exists() else next(path.iterdir()).name,
)


def compare(flags: Flags) -> dict[str, Any]:
    """Compare the rows of a board; return its table, or of a dry run the number of trainings."""
    if flags.board is None:
        raise ValueError(f"expected --board=FILE, such as {BOARDS}/demo.yaml")
    file = flags.board if Path(flags.board).suffix else str(BOARDS / f"{flags.board}.yaml")
    board = read_board(file, changes_of(flags))
    output = Path(flags.output_dir or Path("output") / "boards" / board.name)
    plan = Plan(board, output)
    trainings = foresee(board)
    check_commands(board, [each.task for each in trainings])
    if flags.dry_run:
        return print_trainings(board, trainings, output)

    prepare_folder("output_dir", output, KIND)
    found = look_at_data(board.data, output)
    check_origin(board, found, output)
    for line in found.lines():
        log(line)
    if flags.retry:
        plan.retry()
    devices = tuple(
        name if ":" in name or not name.isdecimal() else f"cuda:{name}"
        for name in (flags.devices or "").split(",")
        if name
    )
    options = dict(flags.launcher_option)
    results = run_board(board, output, Machines(flags.jobs, devices, flags.launcher, options))
    show(f"\n{markdown(results)}\n{output / 'board.html'}")
    return results


def changes_of(flags: Flags) -> Changes:
    """Return what the command line changes of a board."""
    named = [flag.name for flag in DATA_FLAGS if flag.name in flags.given]
    rows = [name.strip() for name in flags.rows.split(";")] if flags.rows else None
    return Changes(
        data={name: shown(getattr(flags, name)) for name in named},
        flags=dict(flags.flag),
        protocol={name: getattr(flags, name) for name in PROTOCOL_FLAGS if name in flags.given},
        rows=rows,
        budget=flags.budget,
    )
