"""Put several evaluations side by side, with the curves of their runs and a look at the results.

python -m retrieval.summary output/demo untrained arcmargin eml
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metric_learning.common.cli import refuse_torchrun, user_errors
from metric_learning.common.flags import words_of
from metric_learning.common.log import show
from metric_learning.common.outputs import prepare_output
from metric_learning.common.schema import Field, check_fields, is_number
from metric_learning.engine.embed.dump.opened import open_features
from metric_learning.engine.report.files import PAGE, PICTURE, PICTURES
from metric_learning.engine.report.plots import plot_curves, plot_neighbours
from metric_learning.engine.report.results import check_features, read_joined


def main(argv: Sequence[str] | None = None) -> str:
    """Print the table and where the pictures are; return the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="holds NAME.json of eval.py, runs and features/")
    parser.add_argument("names", nargs="+", help="evaluations, in the order of the columns")
    args = parser.parse_args(words_of((), argv))
    with user_errors():
        refuse_torchrun()
        curves, neighbours = (
            prepare_output(None, args.folder / "report" / name, PICTURE) for name in PICTURES
        )
        files = [args.folder / f"{name}.json" for name in args.names]
        results = read_joined(files)
        check_features(args.folder / "features", results)
        table = recall_table(args.names, [results[file] for file in files])
        runs = [args.folder / name for name in args.names if (args.folder / name).is_dir()]
        dump = args.folder / "features"
        features = open_features(dump)
        if features.labels is None:
            raise ValueError(f"{dump} holds no labels.txt: expected features of a --dataset")

        if runs:
            plot_curves(runs, curves)
        plot_neighbours(
            np.asarray(features.embeddings), features.labels, list(features.paths), neighbours
        )
        places: dict[str, str | Path] = {
            "run folders": ", ".join(map(str, runs)),
            "features": dump,
            "loss curves": curves if runs else "none",
            "first neighbours": neighbours,
        }
        if (page := curves.with_name(PAGE)).is_file():  # of python -m retrieval.report
            places["report"] = page

        show(f"\n{table}\n")
        for what, place in places.items():
            show(f"{what + ':':18}{place}")
        return table


def recall_table(names: Sequence[str], results: Sequence[Mapping[str, Any]]) -> str:
    """Return a text table: a row per metric in percent, a column per evaluation."""
    metrics = [name for name, value in results[0].items() if "@" in name and is_number(value)]
    metrics = [name for name in metrics if all(name in other for other in results)]
    fields = [Field(name, "a number", is_number) for name in metrics]
    for name, result in zip(names, results, strict=True):
        check_fields(result, fields, name)

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
