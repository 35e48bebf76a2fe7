"""What the outcomes in a board's folder are of: images and weights, compared at each start.

The flags of a training are in the name of its run folder, its images and weights are not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from metric_learning import train_elem
from metric_learning.common.atomic import write_json
from metric_learning.common.fingerprint import (
    Snapshot,
    find_changes,
    load_snapshot,
)
from metric_learning.common.schema import Field, check_fields, is_object, is_text, read_json
from metric_learning.engine.evaluate.scoring import check_scorable
from metric_learning.engine.leaderboard.boards.board import Board
from metric_learning.engine.options.parts import DataOptions, pick
from metric_learning.engine.options.training_table import ELEM, parse_training
from metric_learning.models.weights.fingerprint import RANDOM, hash_weights
from metric_learning.reader import ImageSet, describe_sets
from metric_learning.reader.sets.snapshots import snapshot_of

ORIGIN = "origin.json"
FIELDS = (Field("weights", "names and digests", lambda value: is_object(value, is_text)),)


@dataclass(frozen=True)
class BoardData:
    """The images of a board: those of training and of the test, and which snapshots they have."""

    sets: Mapping[str, ImageSet]
    snapshots: Mapping[str, Snapshot]

    @property
    def is_closed(self) -> bool:
        """Whether the test classes are among those of training."""
        train, test = (set(self.sets[s].class_names.values()) for s in ("train", "test"))
        return test <= train

    def lines(self) -> list[str]:
        """Say what images there are."""
        return describe_sets(list(self.sets.values()))


def data_options(data: Mapping[str, str]) -> DataOptions:
    """Return the options of the data of a board: all that is not for the test is for training."""
    words = [f"--{name}={text}" for name, text in data.items()]
    flags = parse_training(None, ELEM, train_elem.FLAGS, [*words, "--val_fold=none"])
    return pick(DataOptions, flags)


def look_at_data(data: Mapping[str, str], output: Path) -> BoardData:
    """List the images of a board, and look at those that may have changed since the last start.

    Raises ValueError or OSError where they are not there, or could not be scored.
    """
    options = data_options(data)
    sets = {split: options.load(split).require_whole() for split in ("train", "test")}
    check_scorable(sets["test"])
    snapshots = {split: snapshot_of(s, _known(output, split)) for split, s in sets.items()}
    return BoardData(sets, snapshots)


def _known(output: Path, split: str) -> Snapshot | None:
    try:
        return load_snapshot(output / f"{split}_images.npz")
    except (OSError, ValueError):
        return None


def check_origin(board: Board, found: BoardData, output: Path) -> None:
    """Compare images and weights with those of earlier starts, and record them.

    Raises ValueError where they are others, or the board takes a closed set for an open one.
    """
    if found.is_closed != board.protocol.closed:
        said = "are" if found.is_closed else "are not"
        raise ValueError(
            f"the test classes {said} those of training: set `closed: {found.is_closed}` in the "
            "protocol of the board"
        )
    for split, snapshot in found.snapshots.items():
        kept = _known(output, split)
        changes = find_changes(kept, snapshot) if kept is not None else None
        if changes:
            raise ValueError(
                f"{output} holds results of other {split} images ({changes}): choose another "
                "--output_dir"
            )

    weights = {name: hash_weights(name) for name in sorted(_weights_of(board))}
    path = output / ORIGIN
    before: dict[str, str] = {}
    if path.exists():
        before = check_fields(read_json(path, str(path)), FIELDS, str(path))["weights"]
    for name, digest in weights.items():
        if before.get(name, digest) != digest:
            raise ValueError(
                f"{output} holds results that began with other weights {name}: choose another "
                "--output_dir"
            )
    output.mkdir(parents=True, exist_ok=True)
    write_json(path, {"weights": {**before, **weights}})  # first: the folder is told by it
    for split, snapshot in found.snapshots.items():
        snapshot.save(output / f"{split}_images.npz")


def _weights_of(board: Board) -> set[str]:
    """Return the weights files that rows start from by themselves."""
    named = {row.flags.get("pretrained_model", RANDOM) for row in board.rows if row.start is None}
    return named - {RANDOM}
