"""Put several evaluations side by side, with the curves of their runs and a look at the results.

python -m retrieval.summary output/demo untrained arcmargin eml
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from metric_learning.common.cli import user_errors
from metric_learning.engine.report.plots import plot_curves, plot_neighbours


def main(argv: Sequence[str] | None = None) -> str:
    """Print the table and where the pictures are; return the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="holds NAME.json of eval.py, runs and features/")
    parser.add_argument("names", nargs="+", help="evaluations, in the order of the columns")
    args = parser.parse_args(argv)
    with user_errors():
        table = recall_table(args.folder, args.names)
        runs = [args.folder / name for name in args.names if (args.folder / name).is_dir()]
        report = args.folder / "report"
        plot_curves(runs, report / "curves.png")
        dump = args.folder / "features"
        plot_neighbours(
            np.load(dump / "features.npy"),
            np.loadtxt(dump / "labels.txt", dtype=np.int64),
            (dump / "paths.txt").read_text(encoding="utf-8").splitlines(),
            report / "neighbours.png",
        )

        print(f"\n{table}\n")
        places: dict[str, str | Path] = {
            "run folders": ", ".join(map(str, runs)),
            "features": dump,
            "loss curves": report / "curves.png",
            "first neighbours": report / "neighbours.png",
        }
        if (report / "index.html").is_file():  # of python -m retrieval.report
            places["report"] = report / "index.html"
        for what, place in places.items():
            print(f"{what + ':':18}{place}")
        return table


def recall_table(folder: Path, names: Sequence[str]) -> str:
    """Return a text table: a row per metric in percent, a column per evaluation."""
    results = [json.loads((folder / f"{name}.json").read_text("utf-8")) for name in names]
    numbers = [name for name, value in results[0].items() if isinstance(value, int | float)]
    metrics = [name for name in numbers if "@" in name]
    metrics.sort(key=lambda name: name.endswith("_chance"))  # below the others
    width = max(12, *(len(name) + 2 for name in names))
    label_width = max([13, *(len(name) + 2 for name in metrics)])
    lines = [" " * label_width + "".join(f"{name:>{width}}" for name in names)]
    for metric in metrics:
        values = "".join(f"{100 * result[metric]:>{width}.2f}" for result in results)
        lines.append(f"{metric:{label_width}}{values}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
