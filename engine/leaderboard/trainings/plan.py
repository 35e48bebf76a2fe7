"""The trainings of a board: which there are, what each depends on, and which are to be done next.

All of it follows from the board and from the results so far: whoever looks at the same folder,
after a kill or on another machine, finds the same trainings, under the same names.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from metric_learning.common.atomic import add_once
from metric_learning.common.schema import Field, check_fields, is_text, read_json
from metric_learning.engine.leaderboard.boards.board import Board, Row
from metric_learning.engine.leaderboard.boards.space import (
    Point,
    edge_of,
    first_points,
    reserve_points,
    suggest,
)
from metric_learning.engine.leaderboard.trainings.outcomes import RESULT, Outcome, read_outcome
from metric_learning.engine.leaderboard.trainings.tasks import (
    WEIGHTS,
    Task,
    Trial,
    digest,
    final_task,
    trial_of,
)

SELECTED_BY = "map@r"  # on the held-out folds
NEEDED = (SELECTED_BY, "recall@1")  # metrics of every training that did not fail


@dataclass(frozen=True)
class Choice:
    """What the trials of a row have led to.

    Attributes:
        trial: the best one; of equal ones the first.
        value: the mean of SELECTED_BY over its folds; None where there was nothing to choose.
        at_edge: the parameters of which no trial tried a more extreme value.
    """

    trial: Trial
    value: float | None
    at_edge: tuple[str, ...] = ()


@dataclass(frozen=True)
class Search:
    """How far the trials of a row are.

    Attributes:
        trials: those that are known; the reserve follows when the first ones are done.
        choice: the settings that were chosen, once all trials are done.
        widened: texts on the parameters beyond whose range the reserve goes.
        failure: why there will be no choice, if so.
    """

    trials: Sequence[Trial] = ()
    choice: Choice | None = None
    widened: Sequence[str] = ()
    failure: str | None = None


class Plan:
    """The trainings of a board, and their outcomes in its folder as far as they are known."""

    def __init__(self, board: Board, output: Path) -> None:
        self.board, self.output = board, output
        self._outcomes: dict[str, Outcome] = {}
        self._searches: dict[str, Search] = {}

    def outcome(self, task: Task) -> Outcome | None:
        """Return what a task has come to; None while it is not done."""
        if task.folder not in self._outcomes:
            found = read_outcome(self.output / task.folder, NEEDED)
            if found is None:
                return None
            self._outcomes[task.folder] = found
        return self._outcomes[task.folder]

    def refresh(self) -> None:
        """Look for outcomes that others have added."""
        self._searches.clear()

    def open_tasks(self) -> list[Task]:
        """Return the tasks that can be done now, those first that others wait for."""
        tasks = []
        for row in self.board.rows:
            for trial in self.search(row).trials:
                tasks += self._open_folds(trial)
            tasks += [task for task in self.finals(row) if self.outcome(task) is None]
        return tasks

    def tasks(self, row: Row) -> list[Task]:
        """Return the trainings of a row that are known so far."""
        trials = [task for trial in self.search(row).trials for task in trial.tasks]
        return trials + self.finals(row)

    def spent_weights(self) -> list[Path]:
        """Return the checkpoints of trials that no training goes on from."""
        paths = []
        for row in self.board.rows:
            search = self.search(row)
            is_start = any(other.start == row.name for other in self.board.rows)
            if is_start and search.choice is None:
                continue
            chosen = search.choice.trial.number if is_start and search.choice is not None else None
            tasks = [t for trial in search.trials if trial.number != chosen for t in trial.tasks]
            paths += [self._weights_of(task) for task in tasks if self.outcome(task) is not None]
        return paths

    def _weights_of(self, task: Task) -> Path:
        return self.output / task.folder / WEIGHTS

    def _reopen(self, tasks: Sequence[Task]) -> None:
        """Let trainings be done once more."""
        for task in tasks:
            (self.output / task.folder / RESULT).unlink(missing_ok=True)
            self._outcomes.pop(task.folder, None)
        self.refresh()

    def total(self) -> int:
        """Return how many trainings there will be, if none fails."""
        protocol, total = self.board.protocol, 0
        for row in self.board.rows:
            trials = num_trials(self.board, row)
            total += trials * protocol.folds + (1 if row.is_frozen else protocol.seeds)
        return total

    def retry(self) -> None:
        """Let trainings that have failed be done once more."""
        tasks = [task for row in self.board.rows for task in self.tasks(row)]
        outcomes = [(task, self.outcome(task)) for task in tasks]
        self._reopen([task for task, found in outcomes if found is not None and found.failure])

    def search(self, row: Row) -> Search:
        """Return how far the trials of a row are."""
        if row.name not in self._searches:
            self._searches[row.name] = self._search(row)
        return self._searches[row.name]

    def finals(self, row: Row) -> list[Task]:
        """Return the trainings with the chosen settings, a seed each, that can be done by now."""
        if row.is_frozen:
            return [final_task(self.board, row, {}, 0)]
        choice = self.search(row).choice
        if choice is None:
            return []
        point = choice.trial.point
        if row.start is None:
            seeds = range(self.board.protocol.seeds)
            return [final_task(self.board, row, point, seed) for seed in seeds]
        return [
            final_task(self.board, row, point, start.number, start)
            for start in self.finals(self.board.row(row.start))
            if self._succeeded(start)
        ]

    def _succeeded(self, task: Task) -> bool:
        outcome = self.outcome(task)
        return outcome is not None and outcome.failure is None

    def _search(self, row: Row) -> Search:
        protocol = self.board.protocol
        start = self.search(self.board.row(row.start)) if row.start is not None else None
        if start is not None and start.choice is None:
            return Search(failure=f"{row.start} has failed" if start.failure else None)
        if not needs_trials(self.board, row):
            return Search(choice=Choice(Trial(0, {}, ()), None))
        starts = start.choice.trial.tasks if start is not None and start.choice else None
        if gone := [task for task in starts or () if not self._weights_of(task).exists()]:
            self._reopen(gone)  # a board without this row had no use for them
            return Search()

        seed = space_seed(row)
        if row.space and protocol.search == "tpe":
            points = self._suggested(row, starts, seed)
            first = [trial_of(self.board, row, n, point, starts) for n, point in enumerate(points)]
            is_all = len(points) == protocol.trials + protocol.reserve
            return self._chosen(row, first) if is_all else Search(first)
        points = settings_of(self.board, row)
        first = [trial_of(self.board, row, n, point, starts) for n, point in enumerate(points)]
        found = self._chosen(row, first)
        if found.choice is None:
            return found

        best = found.choice.trial.point
        number = protocol.trials + protocol.reserve - len(first)  # a grid of few choices is small
        more, widened = reserve_points(row.space, best, points, number, seed)
        rest = [trial_of(self.board, row, len(first) + n, p, starts) for n, p in enumerate(more)]
        return replace(self._chosen(row, [*first, *rest]), widened=widened)

    def _chosen(self, row: Row, trials: Sequence[Trial]) -> Search:
        """Choose among trials if all are done; those that failed or are dead are not chosen."""
        values = [self.value(trial) for trial in trials]
        if None in values:
            return Search(trials)
        found = [(value, trial) for value, trial in zip(values, trials, strict=True) if value]
        if not found:
            outcomes = [self.outcome(trial.tasks[0]) for trial in trials]
            reasons = [o.failure for o in outcomes if o is not None and o.failure]
            return Search(trials, failure=reasons[0] if reasons else "no trial is above chance")
        value, trial = max(found, key=lambda pair: (pair[0], -pair[1].number))
        tried = [each.point for each in trials]
        at_edge = tuple(p.name for p in row.space if edge_of(p, trial.point, tried))
        return Search(trials, Choice(trial, value, at_edge))

    def value(self, trial: Trial) -> float | None:
        """Return the mean of SELECTED_BY over the folds of a trial; None while some are open.

        0 where a fold has failed, or the first one was dead: the others are not done then.
        """
        values: list[float] = []
        for task in trial.tasks:
            outcome = self.outcome(task)
            if outcome is None:
                return None
            if outcome.failure is not None or (not values and outcome.is_dead):
                return 0.0
            values.append(outcome.metrics[SELECTED_BY])
        return math.fsum(values) / len(values)

    def _open_folds(self, trial: Trial) -> list[Task]:
        """Return the trainings of a trial that are open: of all folds once the first has lived."""
        first = self.outcome(trial.tasks[0])
        if first is None:
            return [trial.tasks[0]]
        if self.value(trial) is not None:
            return []
        return [task for task in trial.tasks[1:] if self.outcome(task) is None]

    def _suggested(self, row: Row, starts: Sequence[Task] | None, seed: int) -> list[Point]:
        """Return the settings that TPE has suggested so far, and its next where all are done.

        They are kept in files, the first one that is written counts.
        """
        protocol = self.board.protocol
        space = "; ".join(map(str, row.space))
        trial = trial_of(self.board, row, 0, {}, starts).tasks[0].folder
        name = f"{row.slug}-{digest(row.script, {'space': space, 'trial': trial})}"
        folder = self.output / "points" / name
        points: list[Point] = []
        done: list[tuple[Point, float]] = []

        for number in range(protocol.trials + protocol.reserve):
            path = folder / f"{number}.json"
            if not path.exists():
                if len(done) < number:
                    break
                add_once(path, json.dumps(suggest(row.space, done, seed)))
            fields = [Field(p.name, "a text", is_text) for p in row.space]
            point = check_fields(read_json(path, str(path)), fields, str(path))
            points.append({p.name: point[p.name] for p in row.space})
            value = self.value(trial_of(self.board, row, number, points[-1], starts))
            if value is not None:
                done.append((points[-1], value))
        return points


def settings_of(board: Board, row: Row) -> list[Point]:
    """Return the settings of the first trials of a row."""
    protocol = board.protocol
    return first_points(row.space, protocol.trials, space_seed(row), protocol.search)


def space_seed(row: Row) -> int:
    """Return the seed of the settings of a row's trials."""
    return zlib.crc32(row.name.encode()) + row.seed


def num_trials(board: Board, row: Row) -> int:
    """Return how many trials a row has in all: one where there is nothing to choose, or none."""
    protocol = board.protocol
    return protocol.trials + protocol.reserve if row.space else int(needs_trials(board, row))


def needs_trials(board: Board, row: Row) -> bool:
    """Whether a row is measured on the folds: it, or one that follows, has settings to choose."""
    followers = (other for other in board.rows if other.start == row.name)
    return (
        bool(row.space)
        or board.protocol.validates_all
        or any(needs_trials(board, other) for other in followers)
    )
