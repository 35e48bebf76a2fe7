"""The records of a run: one JSON line per log line and test in its stats.jsonl."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metric_learning.common.schema import (
    LARGEST_JSON,
    Field,
    check_fields,
    is_count,
    is_text,
    parse_json,
    shown,
)
from metric_learning.common.text_files import read_text

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
