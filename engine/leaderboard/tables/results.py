"""The table of a board, as far as its trainings are done, with all that it rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from metric_learning.engine.leaderboard.boards.board import Row
from metric_learning.engine.leaderboard.tables.standings import (
    METRICS,
    Contrast,
    Scores,
    contrast,
    figure_of,
    holm,
)
from metric_learning.engine.leaderboard.trainings.outcomes import Outcome
from metric_learning.engine.leaderboard.trainings.plan import SELECTED_BY, Plan
from metric_learning.engine.leaderboard.trainings.tasks import Task
from metric_learning.engine.run.records import read_scores

# What differs between runs of the same board: where and how fast it was done.
OF_THE_MACHINE = ("minutes", "memory_mib", "hosts")


def results_of(plan: Plan) -> dict[str, Any]:
    """Return the table of a plan: what board.json holds."""
    board = plan.board
    rows = {row.name: _describe(plan, row) for row in board.rows}
    scores = {row.name: read_scores_of(plan, row) for row in board.rows}
    known = {name: found for name, found in scores.items() if found is not None}
    for name, found in known.items():
        rows[name]["figures"] = {m: asdict(figure_of(found, m)) for m in METRICS}

    best = {}
    if known:
        best = {m: max(known, key=lambda n: rows[n]["figures"][m]["mean"]) for m in METRICS}
    for metric in METRICS if known else ():
        for kind, other in (("to_baseline", board.protocol.baseline), ("to_best", best[metric])):
            for name, difference in _contrasts(known, other, metric).items():
                told = asdict(difference) | {"is_significant": difference.is_significant}
                rows[name].setdefault(kind, {})[metric] = told
    tasks = [task for row in board.rows for task in plan.tasks(row)]
    return {
        "board": board.name,
        "title": board.title,
        "data": dict(board.data),
        "protocol": asdict(board.protocol),
        "best": best,
        "rows": [rows[name] for name in _in_order(board.rows, rows)],
        "done": sum(plan.outcome(task) is not None for task in tasks),
        "total": plan.total(),
        "is_finished": not plan.open_tasks(),
    }


def _in_order(rows: Sequence[Row], found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Bring rows into the order of Recall@1, each first stage for as long behind its two stages."""

    def height(row: Row) -> float:
        figures = found[row.name].get("figures")
        return float(figures["recall@1"]["mean"]) if figures else -1.0

    leading = sorted((row for row in rows if row.length_of is None), key=height, reverse=True)
    names = []
    for row in leading:
        names += [row.name, *(other.name for other in rows if other.length_of == row.name)]
    return names


def _describe(plan: Plan, row: Row) -> dict[str, Any]:
    """Return what is known of a row but its figures."""
    search, finals = plan.search(row), plan.finals(row)
    outcomes = [o for o in (plan.outcome(task) for task in finals) if o is not None]
    failures = [o.failure for o in outcomes if o.failure is not None]
    if row.start is not None and _has_failed(plan, plan.board.row(row.start)):
        failures.append(f"{row.start} has failed")
    everything = outcomes + [
        o for trial in search.trials for o in map(plan.outcome, trial.tasks) if o is not None
    ]
    choice = search.choice

    return {
        "name": row.name,
        "start": row.start,
        "length_of": row.length_of,
        "is_frozen": row.is_frozen,
        "published": dict(row.published),
        "space": [str(parameter) for parameter in row.space],
        "settings": dict(choice.trial.point) if choice is not None else {},
        "validation": choice.value if choice is not None else None,
        "widened": list(search.widened),
        "at_edge": list(choice.at_edge) if choice is not None else [],
        "failure": search.failure or (failures[0] if failures else None),
        "trials": [
            {
                "settings": dict(trial.point),
                "value": plan.value(trial),
                "folds": [_selected(plan.outcome(task)) for task in trial.tasks],
                "failure": _failure_of(plan, trial.tasks),
            }
            for trial in search.trials
        ],
        "commands": [task.command(Path("OUTPUT")) for task in finals],
        "runs": [task.folder for task in finals],
        "images": max((o.images for o in outcomes), default=0.0),
        "minutes": sum(o.minutes for o in everything),
        "memory_mib": max((o.memory_mib for o in outcomes), default=0.0),
        "hosts": sorted({o.host for o in everything if o.host}),
    }


def _has_failed(plan: Plan, row: Row) -> bool:
    """Whether a training of a row with the chosen settings has failed, or one that it needs."""
    outcomes = [plan.outcome(task) for task in plan.finals(row)]
    if any(o is not None and o.failure is not None for o in outcomes):
        return True
    return row.start is not None and _has_failed(plan, plan.board.row(row.start))


def _selected(outcome: Outcome | None) -> float | None:
    return None if outcome is None else outcome.metrics.get(SELECTED_BY)


def _failure_of(plan: Plan, tasks: Sequence[Task]) -> str | None:
    """Say why a trial was not chosen from: a failed training, or one that stayed at chance."""
    for number, task in enumerate(tasks):
        outcome = plan.outcome(task)
        if outcome is not None and outcome.failure is not None:
            return outcome.failure
        if outcome is not None and number == 0 and outcome.is_dead:
            return "its first fold stays near chance"
    return None


def read_scores_of(plan: Plan, row: Row) -> Scores | None:
    """Return what the finished trainings of a row scored; None before the last one is done."""
    tasks = plan.finals(row)
    outcomes = [plan.outcome(task) for task in tasks]
    wanted = 1 if row.is_frozen else plan.board.protocol.seeds
    if len(tasks) < wanted or any(o is None or o.failure is not None for o in outcomes):
        return None
    found = [read_scores(plan.output / task.folder) for task in tasks]
    first = found[0]
    units = np.arange(len(first["rows"])) if plan.board.protocol.closed else first["labels"]
    return Scores(first["rows"], units, {m: np.stack([f[m] for f in found]) for m in METRICS})


def _contrasts(known: Mapping[str, Scores], name: str | None, metric: str) -> dict[str, Contrast]:
    """Compare all rows with one of them, with p values that are corrected for their number."""
    if name is None or name not in known:
        return {}
    found = {o: contrast(known[name], s, metric) for o, s in known.items() if o != name}
    corrected = holm([c.p for c in found.values()])
    return {o: replace(c, p_holm=p) for (o, c), p in zip(found.items(), corrected, strict=True)}
