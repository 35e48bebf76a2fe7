"""The trainings of a row: their flags, and the run folders that are named after these."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from metric_learning.engine.leaderboard.boards.board import Board, Row
from metric_learning.engine.leaderboard.boards.space import Point

RUNS = "runs"  # folder of the trainings, below the board's
WEIGHTS = "last.pt"  # in a run folder
OUTPUT = "{output}"  # stands for the board's folder, which may lie elsewhere on another machine
AT_THE_END = 10**9  # --test_iter_step: the last step alone is tested
SEEDS_APART = 1000  # between the seeds of rows that have a seed of their own
# Flags that the plan gives itself.
PLANNED = (
    *("seed", "val_fold", "checkpoint", "run_name", "model_save_dir", "config"),
    *("test_iter_step", "test_start", "log_epochs"),
)


@dataclass(frozen=True)
class Task:
    """One training: of a trial without a fold, or with the chosen settings and a seed.

    Attributes:
        row: the name of its row.
        number: of the trial, or the seed from 0.
        fold: that it leaves out and is measured on; None: it is measured on the test classes.
        folder: its run folder, relative to the board's.
        script: train_elem.py or train_pair.py.
        flags: flag -> its text, in which OUTPUT stands for the board's folder.
    """

    row: str
    number: int
    fold: int | None
    folder: str
    script: str
    flags: Mapping[str, str]

    def words(self, output: Path) -> list[str]:
        """Return its command line, without the script."""
        texts = {name: text.replace(OUTPUT, str(output)) for name, text in self.flags.items()}
        return [f"--{name}={text}" for name, text in texts.items()]

    def command(self, output: Path) -> str:
        """Return what repeats it in a shell."""
        return shlex.join(["python", self.script, *self.words(output)])


@dataclass(frozen=True)
class Trial:
    """The trainings of one choice of settings, one for each fold."""

    number: int
    point: Point
    tasks: tuple[Task, ...]


def trial_of(
    board: Board, row: Row, number: int, point: Point, starts: Sequence[Task] | None
) -> Trial:
    """Return a trial of a row, whose trainings go on from those of `starts`, fold by fold."""
    protocol = board.protocol
    unit = ":images" if protocol.closed else ""
    flags = common_flags(board, row, point) | {"seed": str(row.seed * SEEDS_APART)}
    trained = flags | {"val_fold": f"{protocol.folds}{unit}"}
    if starts:
        trained["pretrained_model"] = str(Path(starts[0].folder).parent)
    folder = f"{RUNS}/{row.slug}/trial_{number:02}-{digest(row.script, trained)}"

    tasks = []
    for fold in range(protocol.folds):
        own = {
            "val_fold": f"{fold}/{protocol.folds}{unit}",
            "model_save_dir": f"{OUTPUT}/{folder}",
            "run_name": f"fold_{fold}",
        }
        own |= started_from(starts[fold] if starts else None)
        place = f"{folder}/fold_{fold}"
        tasks.append(Task(row.name, number, fold, place, row.script, flags | own))
    return Trial(number, point, tuple(tasks))


def final_task(
    board: Board, row: Row, point: Point, number: int, start: Task | None = None
) -> Task:
    """Return the training of a row with the chosen settings, on all training images."""
    flags = common_flags(board, row, point) | started_from(start)
    flags |= {"seed": str(row.seed * SEEDS_APART + number), "val_fold": "none"}
    name = f"seed_{number}-{digest(row.script, flags)}"
    place = f"{RUNS}/{row.slug}"
    flags |= {"model_save_dir": f"{OUTPUT}/{place}", "run_name": name}
    return Task(row.name, number, None, f"{place}/{name}", row.script, flags)


def common_flags(board: Board, row: Row, point: Point) -> dict[str, str]:
    """Return the flags that all trainings of a row with some settings have."""
    own = {"checkpoint": "auto", "test_iter_step": str(AT_THE_END)}
    is_begun = row.start is not None or "pretrained_model" in row.flags
    if row.script == "train_pair.py" and is_begun:
        own["test_start"] = "False"
    flags = {"save_iter_step": "0", **board.data, **row.flags, **point, **own}
    if flags.get("trainable") == "head":
        flags.setdefault("features_dir", f"{OUTPUT}/features")
    return flags


def started_from(start: Task | None) -> dict[str, str]:
    """Return the flags of a training that goes on from another one."""
    return {} if start is None else {"pretrained_model": f"{OUTPUT}/{start.folder}/{WEIGHTS}"}


def digest(script: str, texts: Mapping[str, str]) -> str:
    """Identify a training by its flags, in eight hexadecimal digits."""
    text = "\0".join([script, *(f"{name}={texts[name]}" for name in sorted(texts))])
    return hashlib.sha256(text.encode()).hexdigest()[:8]
