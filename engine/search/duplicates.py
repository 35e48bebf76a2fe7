"""Near duplicates among features that infer.py wrote, or between two such folders.

python -m retrieval.duplicates features --threshold=0.95
python -m retrieval.duplicates test_features --against=train_features

The second command finds leaks: test images that are in the training set too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metric_learning.common.atomic import write_csv
from metric_learning.common.cli import refuse_torchrun, user_errors
from metric_learning.common.flags import Flag, boolean, fraction, parse_flags, path
from metric_learning.common.log import show
from metric_learning.common.names import to_cell
from metric_learning.common.outputs import csv_kind, prepare_output, refuse_same
from metric_learning.engine.embed.dump.opened import Features, open_features
from metric_learning.engine.parallel.devices import choose_device
from metric_learning.engine.parallel.world import World
from metric_learning.retrieval.near_pairs import Pairs, find_near_pairs, group_pairs

COLUMNS = ("path", "label", "group", "kept", "cosine")
KEPT_COLUMNS = ("path", "label")
FOUND = csv_kind("a list of near duplicates", COLUMNS)
KEPT = csv_kind("a list of images without near duplicates", KEPT_COLUMNS, COLUMNS[2:])
FOLDER = Flag("features", path, None, "folder of features that infer.py wrote")
FLAGS = (
    Flag("against", path, None, "another such folder: find what both have, not what one has twice"),
    Flag("threshold", fraction, 0.95, "least cosine of near duplicates"),
    Flag("output", path, "duplicates.csv", "CSV file of all images that are near duplicates"),
    Flag("kept", path, None, "CSV file of the images that are left, for --dataset=csv"),
    Flag("use_gpu", boolean, True, "use a GPU if there is one"),
)


def main(argv: Sequence[str] | None = None) -> Path:
    """Find near duplicates, and return the file that lists them."""
    with user_errors():
        flags = parse_flags(__doc__, FLAGS, argv, FOLDER, "python -m retrieval.duplicates")
        refuse_torchrun()
        if flags.features is None:
            raise ValueError("expected a folder of features that infer.py wrote, found none")
        refuse_same(output=flags.output, kept=flags.kept)
        output = prepare_output("output", flags.output, FOUND)
        found = open_features(flags.features)
        if flags.kept:
            prepare_output("kept", flags.kept, KEPT)
            if found.labels is None:
                raise ValueError(
                    f"--kept lists images with labels, and {flags.features} has none: expected "
                    "features of a data set"
                )
        against = open_features(flags.against) if flags.against else None

        device = choose_device("auto", flags.use_gpu, World())
        ours: Any = found.embeddings  # in files, which are read in blocks as an array is
        others: Any = None if against is None else against.embeddings
        pairs = find_near_pairs(ours, others, flags.threshold, device)
        rows = list(rows_of(found, against, pairs))
        write_csv(output, COLUMNS, rows)
        is_leak = against is not None  # of the same file too
        dropped = {row["path"] for row in rows if is_leak or row["path"] != row["kept"]}
        if flags.kept:
            write_csv(Path(flags.kept), KEPT_COLUMNS, kept_rows(found, dropped))
        show(describe(pairs, found, against, rows, len(dropped)))
        show(f"listed in {output}")
        return output


def rows_of(found: Features, against: Features | None, pairs: Pairs) -> Iterator[dict[str, Any]]:
    """Yield a row per image in a pair; of each group the first image is the one that is kept.

    Against others the kept one is the nearest of those. The cosine is that to the nearest image of
    its group, before which it is not listed.
    """
    nearest: dict[int, tuple[float, int]] = {}
    for row, other, cosine in zip(*(values.tolist() for values in pairs[:3]), strict=True):
        nearest[row] = max(nearest.get(row, (-2.0, 0)), (cosine, -other))
        if against is None:
            nearest[other] = max(nearest.get(other, (-2.0, 0)), (cosine, -row))

    groups = group_pairs(pairs, len(found)) if against is None else None
    first: dict[int, str] = {}
    for number, row in enumerate(sorted(nearest)):
        cosine, other = nearest[row]
        name = to_cell(found.paths[row])
        group = number if groups is None else int(groups[row])
        kept = to_cell(against.paths[-other]) if against else first.setdefault(group, name)
        label = "" if found.labels is None else int(found.labels[row])
        cells = (name, label, group, kept, f"{cosine:.6f}")
        yield dict(zip(COLUMNS, cells, strict=True))


def kept_rows(found: Features, dropped: set[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of images that are not dropped, path and label."""
    assert found.labels is not None
    for path_, label in zip(found.paths, found.labels, strict=True):
        name = to_cell(path_)
        if name not in dropped:
            yield {"path": name, "label": int(label)}


def describe(
    pairs: Pairs,
    found: Features,
    against: Features | None,
    rows: Sequence[dict[str, Any]],
    num_dropped: int,
) -> str:
    """Count what was found in a line."""
    measured = "exactly" if pairs.recall == 1 else f"about {pairs.recall:.1%} of all"
    if against is not None:
        return (
            f"{num_dropped} of {len(found)} images are among the {len(against)} others "
            f"({len(pairs.rows)} pairs, {measured})"
        )
    num_groups = len(np.unique([row["group"] for row in rows]))
    return (
        f"{len(rows)} of {len(found)} images are in {num_groups} groups of near duplicates, "
        f"{num_dropped} beside the first of each ({len(pairs.rows)} pairs, {measured})"
    )


if __name__ == "__main__":
    main()
