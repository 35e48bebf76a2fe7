"""The page of a board: its table, what each row rests on, and how its trainings went.

One HTML file that opens offline. It is written again and again while a board is computed, so rows
that are not done yet, or have failed, have their place in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import quote

from metric_learning.common.atomic import write_text
from metric_learning.common.log import log
from metric_learning.common.names import printable
from metric_learning.common.pages import templates_of
from metric_learning.engine.leaderboard.pages import trials
from metric_learning.engine.leaderboard.pages.cells import (
    KINDS,
    Cell,
    cells_of,
    columns_of,
    grids_of,
    linked,
    scales_of,
)
from metric_learning.engine.leaderboard.pages.curves import MOST_POINTS, chart_of
from metric_learning.engine.leaderboard.tables import formats
from metric_learning.engine.leaderboard.trainings.outcomes import RESULT, read_outcome
from metric_learning.engine.report import files

FILE = "board.html"
TEMPLATES = Path(__file__).with_name("templates")
METRIC_NAMES = {"recall@1": "Recall@1", "map@r": "MAP@R"}
NUM_CURVES = 6  # that are drawn at first


def write_page(found: Mapping[str, Any], folder: Path) -> None:
    """Write board.html beside the tables. A line in the log says so where that fails."""
    try:
        write_text(folder / FILE, render(found, folder), errors="backslashreplace")
    except Exception as error:  # a page may not end trainings that take days
        log(f"{FILE} was not written: {type(error).__name__}: {error}")


def render(found: Mapping[str, Any], folder: Path) -> str:
    """Return the page of a table, see `results_of`, whose run folders lie in `folder`."""
    chance = chance_of(found, folder)
    scales = scales_of(found, chance)
    columns = columns_of(found)
    rows = [
        {
            "number": number,
            "cells": list(zip(columns, cells_of(row, found, scales), strict=True)),
            **describe(row, found, folder),
        }
        for number, row in enumerate(found["rows"])
    ]

    protocol, *notes = formats.explanation(found)
    return (
        templates_of(TEMPLATES, files.TEMPLATES)
        .get_template("board.html")
        .render(
            title=printable(found["title"]),
            data=[f"--{name}={printable(text)}" for name, text in found["data"].items()],
            lines=[protocol, *notes[:1]],
            notes=[linked(line) for line in notes[1:]],
            chance=chance,
            progress=None if found["is_finished"] else (found["done"], found["total"]),
            now=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            columns=columns,
            rows=rows,
            grids=grids_of(found, scales, chance),
            curves=chart_of(found["rows"], folder),
            num_curves=NUM_CURVES,
            most_points=MOST_POINTS,
        )
    )


def describe(row: Mapping[str, Any], found: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return what the page shows of a row beside its cells."""
    published = {METRIC_NAMES.get(n, n): linked(text) for n, text in row["published"].items()}
    return {
        "name": printable(row["name"]),
        "state": state_of(row, found, folder),
        "beside": row["length_of"] and printable(row["length_of"]),
        "facts": facts_of(row),
        "figures": figures_of(row),
        "published": published,
        "trials": trials.describe_trials(row),
        "runs": runs_of(row, folder),
    }


def chance_of(found: Mapping[str, Any], folder: Path) -> float | None:
    """Return the Recall@1 of random embeddings, which is one for all rows; None if unknown."""
    for row in found["rows"]:
        for run in row["runs"]:
            try:
                outcome = read_outcome(folder / run)
            except (OSError, ValueError):
                continue
            if outcome is not None and "recall@1_chance" in outcome.metrics:
                return outcome.metrics["recall@1_chance"]
    return None


def state_of(row: Mapping[str, Any], found: Mapping[str, Any], folder: Path) -> tuple[str, str]:
    """Return a kind and what is said of a row without figures: how far it is, or why it failed."""
    if "figures" in row:
        return "done", ""
    if row["failure"]:
        return "failed", f"failed: {printable(row['failure'])}"
    if row["start"] and not row["trials"] and not row["runs"]:
        return "open", f"not done yet: waits for {printable(row['start'])}"

    protocol, parts = found["protocol"], []
    total = protocol["trials"] + protocol["reserve"] if row["space"] else len(row["trials"])
    if total:
        done = sum(trial["value"] is not None for trial in row["trials"])
        parts.append(f"{done} of {total} trials")
    if row["runs"]:
        done = sum((folder / run / RESULT).exists() for run in row["runs"])
        parts.append(f"{done} of {1 if row['is_frozen'] else protocol['seeds']} seeds")
    return "open", f"not done yet: {', '.join(parts)}" if parts else "not done yet"


def facts_of(row: Mapping[str, Any]) -> list[tuple[str, list[str], bool]]:
    """Return name, texts, and whether these are code, of what led to the figures of a row."""
    settings = [f"--{name}={text}" for name, text in row["settings"].items()]
    edges = [f"the best {name} is the most extreme one tried" for name in row["at_edge"]]
    validation = formats.percent(row["validation"], 2)
    facts = [
        ("Chosen settings", settings, True),
        ("MAP@R on the folds", [f"{validation} %"] if row["validation"] is not None else [], False),
        ("Searched", row["space"], False),
        ("Widened", row["widened"], False),
        ("At the edge", edges, False),
        ("Goes on with the network of", [row["start"]] if row["start"] else [], False),
        ("Nothing is trained", ["the weights are measured as they are"] * row["is_frozen"], False),
        ("Failure", [row["failure"]] if row["failure"] else [], False),
        ("Computed on", row["hosts"], False),
    ]

    return [
        (name, [printable(text) for text in texts], code) for name, texts, code in facts if texts
    ]


def figures_of(row: Mapping[str, Any]) -> list[Cell]:
    """Return the figures of a row by metric: of each seed, and what tells it from others."""
    found = []
    for metric, figure in row.get("figures", {}).items():
        contrasts = [
            (
                f"above {KINDS[kind]}: {formats.contrast_text(row[kind][metric])}, "
                f"p {row[kind][metric]['p_holm']:.3g} (Holm)"
            )
            for kind in KINDS
            if metric in row.get(kind, {})
        ]

        found.append(
            {
                "name": METRIC_NAMES[metric],
                "mean": formats.figure_text(figure),
                "range": formats.range_text(figure),
                "seeds": [formats.percent(value, 2) for value in figure["by_seed"]],
                "contrasts": contrasts,
            }
        )
    return found


def runs_of(row: Mapping[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Return the trainings of a row with the chosen settings: name, command and links."""
    return [
        {"name": Path(run).name.partition("-")[0].replace("_", " "), "command": printable(command)}
        | {"links": links_of(run, folder)}
        for run, command in zip(row["runs"], row["commands"], strict=True)
    ]


def links_of(run: str, folder: Path) -> dict[str, str]:
    """Return what there is of a run, as addresses relative to the page."""
    places = {"report": f"{run}/report/{files.PAGE}", "log": f"{run}/log.txt"}
    return {
        name: quote(file, errors="surrogateescape")
        for name, file in places.items()
        if (folder / file).is_file()
    }
