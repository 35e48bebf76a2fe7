"""What leaderboard.py does: read a board, do what is open of it, and print its table."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metric_learning.common.atomic import TEMPORARY
from metric_learning.common.flags import Flags, shown
from metric_learning.common.log import log, show
from metric_learning.common.outputs import Kind, prepare_folder
from metric_learning.engine.leaderboard.boards.board import Board, Changes, read_board
from metric_learning.engine.leaderboard.dry_run import check_commands, foresee, print_trainings
from metric_learning.engine.leaderboard.launch import Machines, places_of, run_board
from metric_learning.engine.leaderboard.origin import ORIGIN, check_origin, look_at_data
from metric_learning.engine.leaderboard.own_data import (
    EFFORT,
    choose_effort,
    divide,
    find_weights,
    last_seconds,
    make_best,
    own_board,
)
from metric_learning.engine.leaderboard.pages.page import FILE, write_page
from metric_learning.engine.leaderboard.pages.reports import write_reports
from metric_learning.engine.leaderboard.tables.formats import markdown
from metric_learning.engine.leaderboard.trainings.plan import Plan
from metric_learning.engine.options.parts import DataOptions, pick
from metric_learning.engine.options.tables import DATA_FLAGS
from metric_learning.reader import describe_sets

BOARDS = Path("configs/boards")
OUTPUT_ROOT = Path("output/boards")
PROTOCOL_FLAGS = ("folds", "trials", "reserve", "seeds", "search")
OURS = (ORIGIN, EFFORT)  # a folder of results holds one of them


def find_foreign(folder: Path) -> str | None:
    """Return the name of a file in a folder that is no board's; a kill may leave half a file."""
    names = [path.name for path in folder.iterdir() if not TEMPORARY.fullmatch(path.name)]
    return None if not names or set(OURS) & set(names) else min(names)


KIND = Kind("the results of a board", find_foreign)


@dataclass(frozen=True)
class Comparison:
    """What leaderboard.py was asked for.

    Attributes:
        board: the file of a board; None: one's own images, `data`, with `minutes`.
        changes: what the command line changes of it.
        output: folder of the results; None: the usual one.
        is_dry: say what would be done.
        retries: do failed trainings again.
        reports: write reports of runs at the end.
    """

    board: str | None
    changes: Changes
    data: DataOptions
    minutes: int | None
    output: Path | None
    machines: Machines
    is_dry: bool
    retries: bool
    reports: bool


def settle_comparison(flags: Flags) -> Comparison:
    """Settle what leaderboard.py does; ValueError where a flag is missing or would not be used."""
    if flags.minutes is not None:
        flags.refuse(("board", *PROTOCOL_FLAGS, "rows", "budget"), "with --minutes")
    elif flags.board is None:
        raise ValueError(
            f"expected --board=FILE, such as {BOARDS}/demo.yaml, or --minutes=60 for your images"
        )
    board = flags.board
    if board is not None and not Path(board).suffix:
        board = str(BOARDS / f"{board}.yaml")

    named = [flag.name for flag in DATA_FLAGS if flag.name in flags.given]
    changes = Changes(
        data={name: shown(getattr(flags, name)) for name in named},
        flags=dict(flags.flag),
        protocol={name: getattr(flags, name) for name in PROTOCOL_FLAGS if name in flags.given},
        rows=[name.strip() for name in flags.rows.split(";")] if flags.rows else None,
        budget=flags.budget,
    )
    names = [name for name in (flags.devices or "").split(",") if name]
    devices = tuple(f"cuda:{name}" if name.isdecimal() else name for name in names)
    return Comparison(
        board=board,
        changes=changes,
        data=pick(DataOptions, flags),
        minutes=flags.minutes,
        output=Path(flags.output_dir) if flags.output_dir else None,
        machines=Machines(flags.jobs, devices, flags.launcher, dict(flags.launcher_option)),
        is_dry=flags.dry_run,
        retries=flags.retry,
        reports=flags.reports,
    )


def compare(asked: Comparison) -> dict[str, Any]:
    """Compare the rows of a board, or what fits one's own images, and return the table.

    Of a dry run it returns the number of trainings and what they take.
    """
    if asked.board is None:
        return compare_own(asked)
    board = read_board(asked.board, asked.changes)
    return compare_rows(asked, board, asked.output or OUTPUT_ROOT / board.name)


def compare_rows(
    asked: Comparison, board: Board, output: Path, seconds: float | None = None
) -> dict[str, Any]:
    """Compare the rows of a board, within so many seconds if given; print and return the table."""
    trainings = foresee(board)
    check_commands(board, [each.task for each in trainings])
    if asked.is_dry:
        return print_trainings(board, trainings, output)

    prepare_folder("output_dir", output, KIND)
    found = look_at_data(board.data, output)
    check_origin(board, found, output)
    for line in found.lines():
        log(line)
    if asked.retries:
        Plan(board, output).retry()
    results = run_board(board, output, asked.machines, seconds)
    if asked.reports:
        write_reports(results, output, [f"--device={name}" for name in asked.machines.devices[:1]])
        write_page(results, output)  # with links to them
    show(f"\n{markdown(results)}\n{output / FILE}")
    return results


def compare_own(asked: Comparison) -> dict[str, Any]:
    """Try on one's own images what fits into some minutes, and train the best on all of them."""
    assert asked.minutes is not None
    end = time.monotonic() + 60.0 * asked.minutes
    output = asked.output or OUTPUT_ROOT / "own_data"
    prepare_folder("output_dir", output, KIND)
    images = asked.data.load("all").require_whole()
    for line in describe_sets([images]):
        log(line)
    output.mkdir(parents=True, exist_ok=True)
    own = divide(images, output)
    network = find_weights(asked.changes.flags)
    seconds = 60.0 * asked.minutes * len(places_of(asked.machines))
    effort = choose_effort(own, network, seconds, output)
    own.write()  # once the folder has what tells that it is of a board
    board = own_board(own, network, effort)

    last = last_seconds(own, network, effort)
    results = compare_rows(asked, board, output, max(end - time.monotonic() - last, 0.0))
    if not asked.is_dry:
        results["best_folder"] = str(make_best(board, results, own, output))
    return results
