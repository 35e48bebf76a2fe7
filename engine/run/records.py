"""The records of a run: one JSON line per log line and test, and the scores of its last test."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metric_learning.common.atomic import write_atomically
from metric_learning.common.schema import (
    LARGEST_JSON,
    Field,
    check_fields,
    is_count,
    is_finite,
    is_text,
    parse_json,
    shown,
)
from metric_learning.common.text_files import check_regular, read_text
from metric_learning.retrieval.scores import QueryScores

SCORES = "test_scores.npz"
SCORED = ("recall@1", "map@r")

FIELDS = (Field("kind", "a name", is_text), Field("step", "a number of steps", is_count))


def read_records(file: Path) -> list[dict[str, Any]]:
    """Read the stats.jsonl of a run but a torn last line; ValueError where another is no record."""
    records = []
    text = read_text(file, str(file), LARGEST_JSON, errors="replace")
    lines = text.splitlines(keepends=True)

    for number, line in enumerate(lines, start=1):
        try:
            record = check_fields(parse_json(line, "it"), FIELDS, "it")
            records.append({"kind": record["kind"], "step": record["step"], **record})
        except ValueError:
            if number == len(lines) and not line.endswith("\n"):
                break
            raise ValueError(
                f"{file}:{number}: expected a JSON record with a kind and a step, found "
                f"{shown(line.rstrip())}: delete the line"
            ) from None
    return records


def curve_of(
    records: Sequence[dict[str, Any]], kind: str, name: str
) -> tuple[list[int], list[float]]:
    """Return the steps, ascending, and the finite values `name` of the records of a kind."""
    points = {
        record["step"]: record[name]
        for record in records
        if record["kind"] == kind and is_finite(record.get(name))
    }  # of a resumed run the later record counts
    steps = sorted(points)
    return steps, [points[step] for step in steps]


def write_scores(folder: Path, scores: QueryScores) -> None:
    """Write what each query of a test scored: rows and labels (Q,) int64, SCORED (Q,) float64."""
    arrays: dict[str, Any] = {"rows": scores.rows, "labels": scores.labels}
    arrays |= {name: scores.columns[name] for name in SCORED}
    file = io.BytesIO()
    np.savez(file, **arrays)
    data = file.getvalue()
    write_atomically(folder / SCORES, lambda temporary: temporary.write_bytes(data))


def read_scores(folder: Path) -> dict[str, np.ndarray]:
    """Read what `write_scores` wrote; ValueError where it is damaged, OSError where it cannot."""
    path = folder / SCORES
    check_regular(path, str(path))
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in ("rows", "labels", *SCORED)}
    except Exception as error:  # a damaged file can raise anything
        raise ValueError(f"{path} is damaged: train the run again") from error
    sizes = {(array.ndim, len(array)) for array in found.values()}
    if len(sizes) != 1 or sizes.pop()[0] != 1:
        raise ValueError(f"{path} is damaged: train the run again")
    return found
