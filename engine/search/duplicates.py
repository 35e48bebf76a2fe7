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
from metric_learning.reader.sets.boxes import BOX_COLUMNS
from metric_learning.retrieval.near_pairs import Pairs, find_near_pairs, group_pairs

COLUMNS = ("path", "label", "group", "kept", "cosine", "is_kept")
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
        rows = dict(rows_of(found, against, pairs))
        write_csv(output, columns_of(found, COLUMNS), rows.values())
        dropped = {number for number, row in rows.items() if not row["is_kept"]}
        if flags.kept:
            kept = [number for number in range(len(found)) if number not in dropped]
            columns = columns_of(found, KEPT_COLUMNS)
            write_csv(Path(flags.kept), columns, (cells_of(found, number) for number in kept))
        show(describe(pairs, found, against, list(rows.values()), len(dropped)))
        show(f"listed in {output}")
        return output


def columns_of(found: Features, columns: Sequence[str]) -> list[str]:
    """Return columns of a list, those of boxes among them where images are parts of photos."""
    return [columns[0], *(() if found.boxes is None else BOX_COLUMNS), *columns[1:]]


def cells_of(found: Features, number: int) -> dict[str, Any]:
    """Return what a list says of any image: its path, box and label."""
    box = () if found.boxes is None else found.boxes[number].tolist()
    label = "" if found.labels is None else int(found.labels[number])
    return {
        "path": to_cell(found.paths[number]),
        **dict(zip(BOX_COLUMNS, box, strict=False)),
        "label": label,
    }


def rows_of(
    found: Features, against: Features | None, pairs: Pairs
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number and a row of each image in a pair; of each group the first one is kept.

    Against others none is kept, and `kept` is the nearest of those. The cosine is that to the
    nearest image of its group, before which it is not listed.
    """
    groups = group_pairs(pairs, len(found)) if against is None else None
    first: dict[int, int] = {}
    nearest = zip(*(values.tolist() for values in nearest_of(pairs, against is None)), strict=True)
    for place, (number, other, cosine) in enumerate(nearest):
        group = place if groups is None else int(groups[number])
        kept = other if against else first.setdefault(group, number)

        yield (
            number,
            {
                **cells_of(found, number),
                "group": group,
                "kept": to_cell((against or found).paths[kept]),
                "cosine": f"{cosine:.6f}",
                "is_kept": against is None and kept == number,
            },
        )


def nearest_of(pairs: Pairs, is_symmetric: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the rows (M,) in pairs, the nearest other of each, and its cosine.

    Of others that are equally near it is the first one.
    """
    rows, others, cosines = pairs[:3]
    if is_symmetric:
        rows, others = np.concatenate([rows, others]), np.concatenate([others, rows])
        cosines = np.concatenate([cosines, cosines])
    order = np.lexsort((others, -cosines, rows))
    unique, starts = np.unique(rows[order], return_index=True)
    return unique, others[order][starts], cosines[order][starts]


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
