"""The trainings of a board before any is done: their commands, and what they will take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from metric_learning.common.log import show
from metric_learning.engine.leaderboard.boards.board import Board, Row
from metric_learning.engine.leaderboard.boards.space import Point
from metric_learning.engine.leaderboard.estimate import (
    GPU_FLOPS,
    Estimate,
    estimate,
    minutes_text,
)
from metric_learning.engine.leaderboard.origin import data_options
from metric_learning.engine.leaderboard.trainings.plan import num_trials, settings_of
from metric_learning.engine.leaderboard.trainings.tasks import (
    PLANNED,
    RUNS,
    Task,
    final_task,
    trial_of,
)
from metric_learning.engine.leaderboard.trainings.work import check_words

# Stand for settings that trainings will tell, and for the run folders that are named after these.
NEAR_BEST, CHOSEN = "NEAR_BEST", "CHOSEN"


class Foreseen(NamedTuple):
    """A training, with settings like those that it will have, and what is shown of these."""

    task: Task
    hidden: Mapping[str, str]  # flag -> what stands for its text

    def command(self, output: Path) -> str:
        """Return its command line."""
        task = replace(self.task, flags={**self.task.flags, **self.hidden})
        return task.command(output)


def foresee(board: Board) -> list[Foreseen]:
    """Return the trainings of all rows, in the order of the board."""
    return [training for row in board.rows for training in _of_row(board, row)]


def _of_row(board: Board, row: Row) -> Iterator[Foreseen]:
    if row.is_frozen:
        yield Foreseen(final_task(board, row, {}, 0), {})
        return
    protocol, middle = board.protocol, {p.name: p.at(0.5) for p in row.space}
    points = [] if protocol.search == "tpe" and row.space else settings_of(board, row)
    starts = [_start(board, row, fold) for fold in range(protocol.folds)]

    for n in range(num_trials(board, row)):
        is_known = n < len(points)
        point: Point = points[n] if is_known else middle
        hidden = {} if is_known else dict.fromkeys(middle, NEAR_BEST)
        for task in trial_of(board, row, n, point, starts if row.start else None).tasks:
            yield Foreseen(task, hidden)
    for seed in range(protocol.seeds):
        start = _start(board, row, None) if row.start else None
        hidden = dict.fromkeys(middle, CHOSEN)
        yield Foreseen(final_task(board, row, middle, seed, start), hidden)


def _start(board: Board, row: Row, fold: int | None) -> Task:
    """Return what stands for the training that one of a second stage goes on from."""
    slug = board.row(row.start).slug if row.start else ""
    place = f"{CHOSEN}/fold_{fold}" if fold is not None else CHOSEN
    return Task(row.start or "", 0, fold, f"{RUNS}/{slug}/{place}", "", {})


def check_commands(board: Board, tasks: Sequence[Task]) -> None:
    """Raise ValueError, with the name of the row, where a script would not take its flags."""
    for row in board.rows:
        for name in PLANNED:
            if name in row.flags:
                raise ValueError(f"row {row.name}: {name} is set by the board: leave it out")
    seen: set[str] = set()
    for task in tasks:
        if task.row in seen:
            continue
        seen.add(task.row)
        try:
            check_words(task, task.words(Path("output")))
        except ValueError as error:
            raise ValueError(f"row {task.row}: {error}") from error


def print_trainings(board: Board, trainings: Sequence[Foreseen], output: Path) -> dict[str, Any]:
    """Print the command of each training, with what it will take, and the sums of all.

    Returns:
        `trainings`, their number; `seconds` and `gpu_seconds`, None where the length of some is not
        known without the data.
    """
    num_images = count_images(board)
    row = None
    estimates: list[Estimate | None] = []
    for each in trainings:
        if each.task.row != row:
            row = each.task.row
            show(f"\n# {row}")
        estimates.append(estimate(each.task, num_images, board.protocol.folds))
        show(f"{each.command(output)}  # {estimates[-1] or 'its length depends on the data'}")

    known = [found for found in estimates if found is not None]
    is_known = len(known) == len(estimates)
    seconds, gpu_seconds = sum(e.seconds for e in known), sum(e.gpu_seconds for e in known)
    said = f"\n{len(trainings)} trainings"
    if known:
        most = max(found.memory for found in known) / 2**30
        where = "the GPU" if torch.cuda.is_available() else "a core"
        said += (
            f"{'' if is_known else f', {len(known)} of which'} take about {minutes_text(seconds)} "
            f"of {where} here, or {minutes_text(gpu_seconds)} of one that sustains "
            f"{GPU_FLOPS / 1e12:.0f} TFLOP/s, and up to {most:.1f} GiB in float32; reading images "
            "and computing the features of frozen networks are not counted"
        )
    show(said)
    return {
        "trainings": len(trainings),
        "seconds": seconds if is_known else None,
        "gpu_seconds": gpu_seconds if is_known else None,
    }


def count_images(board: Board) -> dict[str, int]:
    """Count the images of the splits; where the data is not here, as the board says."""
    try:
        options = data_options(board.data)
        return {split: len(options.load(split)) for split in ("train", "test")}
    except OSError:
        return dict(board.num_images)
