"""What a board's page says of the trials of a row: plots over each parameter, and a list."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from metric_learning.common.names import printable
from metric_learning.engine.leaderboard.pages.drawings import Dot, draw_trials
from metric_learning.engine.leaderboard.tables.formats import percent, settings_text

LOG = re.compile(r"(?P<name>\w+): \S+ to \S+ \(log\)")  # a parameter, as its text says


def describe_trials(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return plots, the list of all trials and that of those that failed; None without any."""
    if not row["trials"]:
        return None
    described = [
        {
            "number": number,
            "settings": printable(settings_text(trial)) or "those of the row",
            "value": percent(None if trial["failure"] else trial["value"], 2),
            "folds": [percent(fold, 2) for fold in trial["folds"]],
            "remark": _remark(trial, row),
        }
        for number, trial in enumerate(row["trials"])
    ]

    return {
        "plots": plots_of(row),
        "all": described,
        "failed": [
            (each, printable(trial["failure"]))
            for each, trial in zip(described, row["trials"], strict=True)
            if trial["failure"]
        ],
    }


def _is_chosen(trial: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    return row["validation"] is not None and (
        trial["settings"] == row["settings"] and trial["value"] == row["validation"]
    )


def _remark(trial: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    if trial["failure"]:
        return "failed"
    if trial["value"] is None:
        return "not done yet"
    return "chosen" if _is_chosen(trial, row) else ""


def plots_of(row: Mapping[str, Any]) -> list[str]:
    """Draw the trials of a row over each parameter that it searches."""
    logarithmic = {match["name"] for match in map(LOG.fullmatch, row["space"]) if match}
    done = [t for t in row["trials"] if t["value"] is not None or t["failure"]]
    names = list(done[0]["settings"]) if done else []
    return [
        draw_trials(name, [_dot(trial, row, name) for trial in done], name in logarithmic)
        for name in names
    ]


def _dot(trial: Mapping[str, Any], row: Mapping[str, Any], name: str) -> Dot:
    text = trial["settings"][name]
    folds: Sequence[float] = [fold for fold in trial["folds"] if fold is not None]
    if trial["failure"] or not folds:
        title = f"{name} {text}: {trial['failure']}"
        return Dot(text, None, (0.0, 0.0), False, printable(title))
    is_chosen = _is_chosen(trial, row)
    title = f"{name} {text}: {percent(trial['value'], 2)} %{', chosen' if is_chosen else ''}"
    return Dot(text, trial["value"], (min(folds), max(folds)), is_chosen, printable(title))
