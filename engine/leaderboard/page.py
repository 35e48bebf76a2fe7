"""The page of a board: its table, what each row rests on, and how its trainings went.

One HTML file that opens offline. It is written again and again while a board is computed, so rows
that are not done yet, or have failed, have their place in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup, escape

from metric_learning.common.atomic import write_text
from metric_learning.common.log import log
from metric_learning.common.names import printable
from metric_learning.common.pages import templates_of
from metric_learning.engine.leaderboard import drawings, formats, trials
from metric_learning.engine.leaderboard.curves import MOST_POINTS, chart_of
from metric_learning.engine.leaderboard.drawings import Axis
from metric_learning.engine.leaderboard.outcomes import RESULT, read_outcome
from metric_learning.engine.report import files

FILE = "board.html"
TEMPLATES = Path(__file__).with_name("templates")
METRIC_NAMES = {"recall@1": "Recall@1", "map@r": "MAP@R"}
ABOVE_ALL = "to_best"
KINDS = {"to_baseline": "the baseline", ABOVE_ALL: "the best"}
ADDRESS = re.compile(r"https?://[^\s<>\"']+[^\s<>\"'.,;:)\]]")
NUM_CURVES = 6  # that are drawn at first

Cell = dict[str, Any]


@dataclass(frozen=True)
class Scales:
    """The axes that all rows share: of figures, and of their differences."""

    figure: Axis
    difference: Axis


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
    columns = columns_of(found, scales)
    rows = [
        {
            "number": number,
            "name": printable(row["name"]),
            "state": state_of(row, found, folder),
            "beside": row["length_of"] and printable(row["length_of"]),
            "cells": list(zip(columns, cells_of(row, found, scales), strict=True)),
            "facts": facts_of(row),
            "figures": figures_of(row),
            "published": {
                METRIC_NAMES.get(name, name): linked(text)
                for name, text in row["published"].items()
            },
            "trials": trials.describe_trials(row),
            "runs": runs_of(row, folder),
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


def scales_of(found: Mapping[str, Any], chance: float | None) -> Scales:
    """Return the axes: chance is on that of the figures unless it would take half of it."""
    figures = [row["figures"]["recall@1"] for row in found["rows"] if "figures" in row]
    values = _ends("mean", figures)
    if chance is not None and values and min(values) - chance <= max(values) - min(values):
        values.append(chance)
    contrasts = [
        row[kind]["recall@1"]
        for row in found["rows"]
        for kind in KINDS
        if "recall@1" in row.get(kind, {})
    ]
    return Scales(
        drawings.interval_axis(values),
        drawings.interval_axis([0.0, *_ends("difference", contrasts)]),
    )


def _ends(middle: str, found: Iterable[Mapping[str, Any]]) -> list[float]:
    values = [each[name] for each in found for name in (middle, "low", "high")]
    return [value for value in values if value is not None]


def grids_of(found: Mapping[str, Any], scales: Scales, chance: float | None) -> list[Markup]:
    """Return what lies behind the intervals: ticks, the baseline and chance, and the zero."""
    lines = {}
    for row in found["rows"]:
        if row["name"] == found["protocol"]["baseline"] and "figures" in row:
            lines["baseline"] = row["figures"]["recall@1"]["mean"]
    if chance is not None and scales.figure.low <= chance:
        lines["chance"] = chance
    return [
        drawings.draw_grid("grid-figure", scales.figure, lines),
        drawings.draw_grid("grid-difference", scales.difference, {"zero": 0.0}),
    ]


def columns_of(found: Mapping[str, Any], scales: Scales) -> list[Cell]:
    """Return the columns behind the name: label, which order comes first, and the scale."""
    figure, difference = drawings.draw_scale(scales.figure), drawings.draw_scale(scales.difference)
    columns = [
        {"label": "Recall@1,\xa0%", "scale": figure},
        {"label": "MAP@R,\xa0%"},
    ]
    if found["protocol"]["baseline"] is not None:
        label = f"above {printable(found['protocol']['baseline'])}, points"
        columns.append({"label": label, "scale": difference})
    columns += [
        {"label": "above the best, points", "scale": difference},
        {"label": "images seen", "first": "ascending"},
        {"label": "minutes", "first": "ascending"},
        {"label": "MiB", "first": "ascending"},
    ]
    if any(row["published"] for row in found["rows"]):
        columns.append({"label": "published Recall@1,\xa0%"})
    return [{"first": "descending", "scale": "", **column} for column in columns]


def cells_of(row: Mapping[str, Any], found: Mapping[str, Any], scales: Scales) -> list[Cell]:
    """Return the cells of a row behind its name: key of the sorting, text and drawing."""
    recall = _figure_cell(row, found, "recall@1")
    if "figures" in row:
        recall |= _interval_of(row["figures"]["recall@1"], scales.figure)
    cells = [recall, _figure_cell(row, found, "map@r")]
    if found["protocol"]["baseline"] is not None:
        cells.append(_contrast_cell(row, "to_baseline", found["protocol"]["baseline"], scales))
    cells.append(_contrast_cell(row, ABOVE_ALL, found["best"].get("recall@1"), scales))
    has_begun = row["minutes"] > 0
    for name, digits in (("images", 0), ("minutes", 1), ("memory_mib", 0)):
        text = f"{row[name]:,.{digits}f}" if has_begun else "–"
        cells.append(_blank() | {"sort": row[name] if has_begun else None, "text": text})
    if any(other["published"] for other in found["rows"]):
        cells.append(_published_cell(row["published"]))
    return cells


def _blank() -> Cell:
    return {"sort": None, "text": "–", "more": "", "drawing": "", "note": "", "is_best": False}


def _figure_cell(row: Mapping[str, Any], found: Mapping[str, Any], metric: str) -> Cell:
    if "figures" not in row:
        return _blank()
    figure = row["figures"][metric]
    is_best = found["best"].get(metric) == row["name"] and formats.is_clear_best(found, metric)
    text = formats.figure_text(figure)
    return _blank() | {"sort": figure["mean"], "text": text, "is_best": is_best}


def _interval_of(recall: Mapping[str, Any], axis: Axis) -> Cell:
    """Return what a cell has of an interval: its text, and its drawing."""
    text = formats.range_text(recall)
    drawn = drawings.draw_interval(
        "grid-figure",
        axis,
        recall["mean"],
        (recall["low"], recall["high"]),
        True,
        f"Recall@1 {formats.percent(recall['mean'])} %, interval {text}",
    )
    return {"more": "" if recall["low"] is None else f" ({text})", "drawing": drawn}


def _contrast_cell(row: Mapping[str, Any], kind: str, other: str | None, scales: Scales) -> Cell:
    if row["name"] == other:
        sort = 0.0 if "figures" in row else None
        return _blank() | {"sort": sort, "text": f"is {KINDS[kind]}"}
    contrast = row.get(kind, {}).get("recall@1")
    if contrast is None:
        return _blank()
    said = "significant" if contrast["is_significant"] else "not significant"
    text = formats.contrast_text(contrast)
    drawn = drawings.draw_interval(
        "grid-difference",
        scales.difference,
        contrast["difference"],
        (contrast["low"], contrast["high"]),
        contrast["is_significant"],
        f"{text} points above {KINDS[kind]}, {said}",
    )
    return _blank() | {"sort": contrast["difference"], "text": text, "drawing": drawn}


def _published_cell(published: Mapping[str, str]) -> Cell:
    text = published.get("recall@1", "–")
    number = re.match(r"-?\d+(\.\d+)?", text)
    return _blank() | {
        "sort": float(number[0]) if number else None,
        "text": printable(text),
        "note": linked(published.get("source", "")),
    }


def linked(text: str) -> Markup:
    """Return a text whose addresses are links."""
    text = printable(text)
    parts, end = [], 0
    for match in ADDRESS.finditer(text):
        parts += [escape(text[end : match.start()])]
        parts += [Markup('<a href="{0}" rel="noreferrer">{0}</a>').format(match[0])]
        end = match.end()
    return Markup("").join([*parts, escape(text[end:])])


def state_of(row: Mapping[str, Any], found: Mapping[str, Any], folder: Path) -> tuple[str, str]:
    """Return a kind and what is said of a row without figures: how far it is, or why it failed."""
    if "figures" in row:
        return "done", ""
    if row["failure"]:
        return "failed", f"failed: {printable(row['failure'])}"
    if row["start"] and not row["trials"]:
        return "open", f"not done yet: waits for {printable(row['start'])}"
    protocol, parts = found["protocol"], []
    if not row["is_frozen"]:
        total = protocol["trials"] + protocol["reserve"] if row["space"] else 1
        done = sum(trial["value"] is not None for trial in row["trials"])
        parts.append(f"{done} of {total} trials")
    if row["runs"]:
        done = sum((folder / run / RESULT).exists() for run in row["runs"])
        parts.append(f"{done} of {1 if row['is_frozen'] else protocol['seeds']} seeds")
    return "open", f"not done yet: {', '.join(parts)}"


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
