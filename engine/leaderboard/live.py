"""How far a board is: a table that is drawn anew on a terminal, else a line for each training."""

from __future__ import annotations

import shutil
import sys
import time

from metric_learning.common.log import log
from metric_learning.common.names import printable
from metric_learning.engine.leaderboard.boards.board import Row
from metric_learning.engine.leaderboard.trainings.outcomes import Outcome
from metric_learning.engine.leaderboard.trainings.plan import SELECTED_BY, Plan
from metric_learning.engine.leaderboard.trainings.tasks import Task
from metric_learning.engine.run.lines import duration

UP, CLEAR = "\x1b[{}A", "\x1b[J"  # of terminals: lines up, and all below the cursor away


class Live:
    """Shows how far a plan is, each time that `update` is called."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._is_terminal = sys.stdout is not None and sys.stdout.isatty()
        self._height = 0
        self._told: set[str] = {task.folder for task, _ in self._finished()}
        self._at_start = len(self._told)
        self._started = time.monotonic()

    def update(self) -> None:
        """Show what has changed."""
        new = [(task, o) for task, o in self._finished() if task.folder not in self._told]
        self._told |= {task.folder for task, _ in new}
        if self._is_terminal:
            self._draw()
        for task, outcome in () if self._is_terminal else new:
            log(f"{describe_outcome(task, outcome)}; {self._progress()}")

    def close(self) -> None:
        """Leave the last table on the screen."""
        self._height = 0

    def _finished(self) -> list[tuple[Task, Outcome]]:
        tasks = [task for row in self.plan.board.rows for task in self.plan.tasks(row)]
        found = [(task, self.plan.outcome(task)) for task in tasks]
        return [(task, outcome) for task, outcome in found if outcome is not None]

    def _progress(self) -> str:
        """Say how many trainings are done, of about how many, and when the last one will be."""
        done, total = len(self._told), self.plan.total()
        seconds = time.monotonic() - self._started
        left = (total - done) * seconds / max(1, done - self._at_start)
        eta = f", eta {duration(left)}" if done > self._at_start else ""
        return f"{done} of about {total} trainings{eta}"

    def _draw(self) -> None:
        size = shutil.get_terminal_size()
        lines = [f"{self.plan.board.title}: {self._progress()}"]
        lines += [self._line(row) for row in self.plan.board.rows]
        lines = [printable(line)[: size.columns - 1] for line in lines[: max(2, size.lines - 2)]]
        back = (UP.format(self._height) + CLEAR) if self._height else ""
        sys.stdout.write(back + "\n".join(lines) + "\n")
        sys.stdout.flush()
        self._height = len(lines)

    def _line(self, row: Row) -> str:
        """Describe a row: its trials and seeds, and the best so far on folds and test."""
        search, finals = self.plan.search(row), self.plan.finals(row)
        values = [self.plan.value(trial) for trial in search.trials]
        done = sum(value is not None for value in values)
        best = max((value for value in values if value is not None), default=None)
        outcomes = [self.plan.outcome(task) for task in finals]
        recalls = [o.metrics["recall@1"] for o in outcomes if o is not None and o.failure is None]
        parts = [f"{row.name[:40]:40}", f"trials {done:3}"]
        parts.append(f"{SELECTED_BY} {100 * best:5.1f}" if best is not None else " " * 11)
        parts.append(f"seeds {len(recalls)}")
        if recalls:
            parts.append(f"recall@1 {100 * sum(recalls) / len(recalls):5.1f}")
        if search.failure:
            parts.append(search.failure)
        return "  ".join(parts)


def describe_outcome(task: Task, outcome: Outcome) -> str:
    """Say in one line what a training has come to."""
    where = f"seed {task.number}" if task.fold is None else f"trial {task.number}, fold {task.fold}"
    if outcome.failure is not None:
        return f"{task.row}, {where}: failed: {outcome.failure}"
    names = (SELECTED_BY, "recall@1")
    figures = ", ".join(f"{name} {100 * outcome.metrics[name]:.1f}" for name in names)
    return f"{task.row}, {where}: {figures}, {outcome.minutes:.1f} min"
