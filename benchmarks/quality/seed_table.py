"""Print mean and standard deviation over seeds of evaluations named NAME_SEED.json.

python -m benchmarks.quality.seed_table output/cub50 frozen arcmargin triplet quadruplet eml npairs
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from metric_learning.common.cli import user_errors
from metric_learning.common.flags import words_of
from metric_learning.common.log import show
from metric_learning.engine.report.results import check_seeds, read_joined


def main(argv: Sequence[str] | None = None) -> str:
    """Print and return the table, in Markdown and percent."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="holds NAME.json or NAME_SEED.json of eval.py")
    parser.add_argument("names", nargs="+", help="evaluations, in the order of the rows")
    parser.add_argument("--metrics", default="recall@1,recall@2,recall@4,recall@8,map@r")
    chosen = parser.parse_args(words_of((), argv))
    with user_errors():
        table = seed_table(chosen.folder, chosen.names, chosen.metrics.split(","))
        show(table)
        return table


def seed_table(folder: Path, names: Sequence[str], metrics: Sequence[str]) -> str:
    """Return a Markdown table: a row per evaluation, mean and sample deviation of its seeds.

    Raises ValueError where the seeds of a row differ in anything else, or rows are not of the same
    images.
    """
    files = {name: find_results(folder, name) for name in names}
    results = read_joined(file for row in files.values() for file in row)
    lines = [f"| | {' | '.join(metrics)} | seeds |", "|---|" + "--:|" * (len(metrics) + 1)]
    for name, row in files.items():
        check_seeds({file: results[file] for file in row})
        cells = [_cell([100 * results[file][metric] for file in row]) for metric in metrics]
        lines.append(f"| {name} | {' | '.join(cells)} | {len(row)} |")
    return "\n".join(lines)


def find_results(folder: Path, name: str) -> list[Path]:
    """Return NAME.json, or all NAME_SEED.json; ValueError where there is neither."""
    alone = folder / f"{name}.json"
    seeds = re.compile(rf"{re.escape(name)}_\d+\.json")
    found = [file for file in sorted(folder.glob("*.json")) if seeds.fullmatch(file.name)]
    if not alone.is_file() and not found:
        raise ValueError(f"no {name}.json and no {name}_SEED.json in {folder}")
    return [alone] if alone.is_file() else found


def _cell(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}"


if __name__ == "__main__":
    main()
