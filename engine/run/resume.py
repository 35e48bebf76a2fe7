"""Where a training begins: from scratch, from a named checkpoint or from its newest good one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from metric_learning.engine.options.parts import RunOptions
from metric_learning.engine.options.tables import ACCEPT
from metric_learning.engine.run.checkpoints import DamagedError, load_checkpoint, newest_good
from metric_learning.engine.run.identity import Origin, describe_classes, refuse_or_note
from metric_learning.engine.run.run_folder import RunFolder, own_folder
from metric_learning.reader import ImageSet

AUTO = "auto"  # --checkpoint=auto: the newest good checkpoint of the run


@dataclass(frozen=True)
class Start:
    """Where a training begins: a checkpoint, or None; `notes` tell what was passed over.

    Attributes:
        folder: its run folder where --checkpoint=auto has settled it, else None.
        notes: lines about what was passed over, and what differs from before and may.
        state: what the checkpoint holds, once it is read.
        origin: what the run is of, once it is known.
    """

    checkpoint: str | None
    folder: Path | None = None
    notes: Sequence[str] = ()
    state: Mapping[str, Any] | None = None
    origin: Origin | None = None

    @property
    def is_auto(self) -> bool:
        """Whether the same command resumes the run."""
        return self.folder is not None

    @property
    def meta(self) -> Mapping[str, Any]:
        """What the checkpoint says of its run; empty for a new one."""
        return {} if self.state is None else self.state["meta"]

    def describe(self, given: Set[str]) -> dict[str, Any]:
        """Say what a checkpoint needs to recognise its run: its origin, and the flags given."""
        assert self.origin is not None
        before = self.meta.get("given", ())
        return {"depends_on": self.origin.facts(), "given": sorted({*given, *before})}


def find_start(run: RunOptions) -> Start:
    """Find out what --checkpoint means; ValueError where auto finds no good checkpoint."""
    if run.checkpoint != AUTO:
        return Start(run.checkpoint)
    folder = own_folder(run)
    newest = newest_good(folder)
    if newest.path is None and newest.passed_over:
        raise ValueError(
            f"no checkpoint in {folder} is good: {'; '.join(newest.passed_over)}. Delete them to "
            "start from scratch"
        )
    return Start(str(newest.path) if newest.path else None, folder, newest.passed_over)


def load_start(path: str) -> dict[str, Any]:
    """Read the checkpoint that a run goes on from, see `load_checkpoint`.

    Its tensors stay in the file, for of a split class layer a process takes its own rows alone.
    Where it is damaged, the error names the newest good one beside it.
    """
    try:
        return load_checkpoint(path)
    except DamagedError as error:
        good = newest_good(Path(path).parent).path
        if good is None:
            raise
        raise DamagedError(f"{error}, the newest good one is --checkpoint={good}") from error


def check_classes(start: Start, train_set: ImageSet, on_changed_data: str) -> Start:
    """Compare the training classes with those of the checkpoint that is resumed, if any.

    Returns a start with a line about a difference that is accepted; raises ValueError for others.
    """
    names = list(train_set.class_names.values())
    before = list(start.meta.get("class_names", names))
    if start.checkpoint is None or before == names:
        return start
    accepts = on_changed_data == ACCEPT and len(before) == len(names)
    notes = refuse_or_note([describe_classes(before, names)], start.checkpoint, accepts)
    return replace(start, notes=[*start.notes, *notes])


def best_so_far(best: dict[str, float], run: RunFolder) -> dict[str, float]:
    """Return the better of `best` and what the run's best.pt says, which is not to be lost."""
    path = run.folder / "best.pt"
    if not path.exists():
        return best
    try:
        kept = load_checkpoint(path)["best"]
    except ValueError as error:
        run.log(f"{error}; the next test writes it anew")
        return {}
    return max(best, kept, key=lambda test: test.get("recall@1", -1.0))
