"""The cells of the table of a board's page: texts, keys of the sorting, and drawings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from metric_learning.common.names import printable
from metric_learning.engine.leaderboard.pages import drawings
from metric_learning.engine.leaderboard.pages.drawings import Axis
from metric_learning.engine.leaderboard.tables import formats

KINDS = {"to_baseline": "the baseline", "to_best": "the best"}
ADDRESS = re.compile(r"https?://[^\s<>\"']+[^\s<>\"'.,;:)\]]")

Cell = dict[str, Any]


@dataclass(frozen=True)
class Scales:
    """The axes that all rows share: of figures, and of their differences."""

    figure: Axis
    difference: Axis


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
        drawings.draw_grid("figure", scales.figure, lines),
        drawings.draw_grid("difference", scales.difference, {"zero": 0.0}),
    ]


def columns_of(found: Mapping[str, Any]) -> list[Cell]:
    """Return the columns behind the name: label, which order comes first, and the scale."""
    figure, difference = map(drawings.draw_scale, ("figure", "difference"))
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
    cells.append(_contrast_cell(row, "to_best", found["best"].get("recall@1"), scales))

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
        "figure",
        axis,
        recall["mean"],
        (recall["low"], recall["high"]),
        True,
        f"Recall@1 {formats.percent(recall['mean'])} %, interval {text}",
    )
    kept = text.replace(" ", "\xa0")  # on one line
    return {"more": "" if recall["low"] is None else f" ({kept})", "drawing": drawn}


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
        "difference",
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
