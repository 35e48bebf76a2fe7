"""The reports on the first training of each row of a board, which its page links to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metric_learning.common.log import log
from metric_learning.engine.leaderboard.trainings.outcomes import RESULT
from metric_learning.engine.report.__main__ import main as report
from metric_learning.engine.report.files import PAGE


def write_reports(found: Mapping[str, Any], output: Path, words: Sequence[str] = ()) -> None:
    """Write the report of each row's first seed into its run folder, unless it is there.

    `words` are further flags of the report. A report that cannot be written is left out, with a
    line in the log: the table of the board does not depend on it.
    """
    data = [f"--{name}={text}" for name, text in found["data"].items()]
    for row in found["rows"]:
        if "figures" not in row:
            continue
        folder = output / row["runs"][0]
        try:
            if not is_fresh(folder):
                log(f"{row['name']}: report on {folder}")
                report([str(folder), *data, *words])
        except SystemExit:  # it has said why
            log(f"{row['name']}: no report")
        except Exception as error:
            log(f"{row['name']}: no report: {type(error).__name__}: {error}")


def is_fresh(folder: Path) -> bool:
    """Whether a run folder holds a report that is not older than the outcome of the run."""
    page = folder / "report" / PAGE
    return page.is_file() and page.stat().st_mtime_ns >= (folder / RESULT).stat().st_mtime_ns
