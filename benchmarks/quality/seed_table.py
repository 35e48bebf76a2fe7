"""Print mean and standard deviation over seeds of evaluations named NAME_SEED.json.

python -m benchmarks.quality.seed_table output/cub50 frozen arcmargin triplet quadruplet eml npairs
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from metric_learning.common.cli import user_errors
from metric_learning.common.flags import words_of


def main(argv: Sequence[str] | None = None) -> str:
    """Print and return the table, in Markdown and percent."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="holds NAME.json or NAME_SEED.json of eval.py")
    parser.add_argument("names", nargs="+", help="evaluations, in the order of the rows")
    parser.add_argument("--metrics", default="recall@1,recall@2,recall@4,recall@8,map@r")
    chosen = parser.parse_args(words_of((), argv))
    with user_errors():
        table = seed_table(chosen.folder, chosen.names, chosen.metrics.split(","))
        print(table)
        return table


def seed_table(folder: Path, names: Sequence[str], metrics: Sequence[str]) -> str:
    """Return a Markdown table: a row per evaluation, mean and sample deviation of its seeds."""
    lines = [f"| | {' | '.join(metrics)} | seeds |", "|---|" + "--:|" * (len(metrics) + 1)]
    for name in names:
        files = sorted(folder.glob(f"{name}.json")) or sorted(folder.glob(f"{name}_[0-9]*.json"))
        if not files:
            raise ValueError(f"no {name}.json and no {name}_SEED.json in {folder}")
        results = [json.loads(file.read_text("utf-8")) for file in files]
        cells = [_cell([100 * result[metric] for result in results]) for metric in metrics]
        lines.append(f"| {name} | {' | '.join(cells)} | {len(files)} |")
    return "\n".join(lines)


def _cell(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}"


if __name__ == "__main__":
    main()
