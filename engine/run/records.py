"""The records of a run: one JSON line per log line and test in its stats.jsonl."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_records(file: Path) -> list[dict[str, Any]]:
    """Read the stats.jsonl of a run but a torn last line; ValueError where another is no record."""
    records = []
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            records.append({"kind": record["kind"], "step": record["step"], **record})
        except (ValueError, TypeError, KeyError):
            if number == len(lines) and not line.endswith("\n"):
                break
            raise ValueError(
                f"{file}:{number}: expected a JSON record with a kind and a step, found "
                f"{line.rstrip()[:80]!r}: delete the line"
            ) from None
    return records
