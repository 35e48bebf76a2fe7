"""What leaderboard.py does: read a board, do what is open of it, and print its table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metric_learning.common.flags import Flags, shown
from metric_learning.common.log import log, show
from metric_learning.common.outputs import Kind, prepare_folder
from metric_learning.engine.leaderboard.board import Board, Changes, read_board
from metric_learning.engine.leaderboard.dry_run import check_commands, foresee, print_trainings
from metric_learning.engine.leaderboard.formats import markdown
from metric_learning.engine.leaderboard.launch import Machines, places_of, run_board
from metric_learning.engine.leaderboard.origin import ORIGIN, check_origin, look_at_data
from metric_learning.engine.leaderboard.own_data import (
    EFFORT,
    choose_effort,
    divide,
    find_weights,
    make_best,
    own_board,
)
from metric_learning.engine.leaderboard.page import FILE, write_page
from metric_learning.engine.leaderboard.plan import Plan
from metric_learning.engine.leaderboard.reports import write_reports
from metric_learning.engine.options.parts import DataOptions, pick
from metric_learning.engine.options.tables import DATA_FLAGS
from metric_learning.reader import describe_sets

BOARDS = Path("configs/boards")
PROTOCOL_FLAGS = ("folds", "trials", "reserve", "seeds", "search")
OURS = (ORIGIN, EFFORT)  # a folder of results holds one of them
KIND = Kind(
    "the results of a board",
    lambda path: None if any((path / n).exists() for n in OURS) else next(path.iterdir()).name,
)


def compare(flags: Flags) -> dict[str, Any]:
    """Compare the rows of a board, or what fits one's own images, and return the table.

    Of a dry run it returns the number of trainings and what they take.
    """
    machines = machines_of(flags)
    if flags.minutes is not None:
        flags.refuse(("board", *PROTOCOL_FLAGS, "rows", "budget"), "with --minutes")
        return compare_own(flags, machines)
    if flags.board is None:
        raise ValueError(
            f"expected --board=FILE, such as {BOARDS}/demo.yaml, or --minutes=60 for your images"
        )
    file = flags.board if Path(flags.board).suffix else str(BOARDS / f"{flags.board}.yaml")
    board = read_board(file, changes_of(flags))
    output = Path(flags.output_dir or Path("output") / "boards" / board.name)
    return compare_rows(board, output, machines, flags.dry_run, flags.retry, flags.reports)


def compare_rows(
    board: Board, output: Path, machines: Machines, is_dry: bool, retries: bool, reports: bool
) -> dict[str, Any]:
    """Compare the rows of a board, and print and return the table."""
    trainings = foresee(board)
    check_commands(board, [each.task for each in trainings])
    if is_dry:
        return print_trainings(board, trainings, output)

    prepare_folder("output_dir", output, KIND)
    found = look_at_data(board.data, output)
    check_origin(board, found, output)
    for line in found.lines():
        log(line)
    if retries:
        Plan(board, output).retry()
    results = run_board(board, output, machines)
    if reports:
        write_reports(results, output, [f"--device={name}" for name in machines.devices[:1]])
        write_page(results, output)  # with links to them
    show(f"\n{markdown(results)}\n{output / FILE}")
    return results


def compare_own(flags: Flags, machines: Machines) -> dict[str, Any]:
    """Try on one's own images what fits into --minutes, and train the best on all of them."""
    images = pick(DataOptions, flags).load("all").require_whole(may_repeat=False)
    output = Path(flags.output_dir or Path("output") / "boards" / "own_data")
    prepare_folder("output_dir", output, KIND)
    for line in describe_sets([images]):
        log(line)
    own = divide(images, output)
    network = find_weights(dict(flags.flag))
    seconds = 60.0 * flags.minutes * len(places_of(machines))
    board = own_board(own, network, choose_effort(own, network, seconds, output))
    results = compare_rows(board, output, machines, flags.dry_run, flags.retry, flags.reports)
    if not flags.dry_run:
        results["best_folder"] = str(make_best(board, results, own, output))
    return results


def machines_of(flags: Flags) -> Machines:
    """Return where a board is computed."""
    names = [name for name in (flags.devices or "").split(",") if name]
    devices = tuple(f"cuda:{name}" if name.isdecimal() else name for name in names)
    return Machines(flags.jobs, devices, flags.launcher, dict(flags.launcher_option))


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
