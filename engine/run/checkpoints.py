"""Training checkpoints: everything that a run needs to go on, whole and checked.

Every byte is checked when one is read, see `models.weights.torch_file`, so that no second file can
contradict it.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from metric_learning.common.atomic import write_atomically
from metric_learning.common.inert_pickle import describe_strangers
from metric_learning.common.schema import Field, check_fields, is_count, is_number, is_object
from metric_learning.models.weights.torch_file import read_torch

PARTS = ("model", "criterion", "optimizer", "step", "best", "meta")
# Checkpoints of earlier versions lack them.
OPTIONAL_PARTS = ("live_model", "scaler", "tested", "epoch", "start", "course")
FORMER_PARTS = ("random_state",)  # checkpoints of earlier versions have them; not used


class DamagedError(ValueError):
    """A checkpoint is truncated, holds changed bytes or is no checkpoint at all."""


def save_checkpoint(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write a checkpoint with the parts named in PARTS and OPTIONAL_PARTS, atomically."""
    assert set(PARTS) <= set(checkpoint) <= {*PARTS, *OPTIONAL_PARTS}

    def write(temporary: Path) -> None:
        try:
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
        except RuntimeError as error:  # what torch.save makes of a full disk
            cause = error.__context__
            raise (cause if isinstance(cause, OSError) else OSError(str(error))) from error

    write_atomically(path, write)


def copy_checkpoint(source: Path, path: Path) -> None:
    """Write a checkpoint that was written just now under a second name too, atomically.

    As a file of its own: what damages one leaves the other.
    """
    write_atomically(path, lambda temporary: shutil.copyfile(source, temporary))


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read and check a training checkpoint; a stranger's file cannot run code.

    Its tensors stay in the file, as mapped memory. Raises DamagedError where it is damaged or not
    of this project, ValueError where it is no training checkpoint or one of a newer version.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")

    try:
        found = read_torch(path)
        if found.strangers and set(PARTS) <= set(found.content):
            raise ValueError(f"it holds {describe_strangers(found.strangers)}")
    except (ValueError, TypeError, OSError) as error:
        raise DamagedError(
            f"checkpoint {path} is damaged or not written by this project ({error}): "
            "choose another one of the run"
        ) from error
    checkpoint = found.content

    if not isinstance(checkpoint, dict) or not set(PARTS) <= set(checkpoint):
        raise ValueError(
            f"{path} holds weights but no training state: give it as --pretrained_model, which "
            "takes weights only; --checkpoint resumes a run from its last.pt"
        )
    unknown = set(checkpoint) - {*PARTS, *OPTIONAL_PARTS, *FORMER_PARTS}
    if unknown:
        raise ValueError(
            f"checkpoint {path} holds {', '.join(sorted(unknown))}, which this version does not "
            "know: resume it with the version that wrote it"
        )
    try:
        return check_fields(checkpoint, FIELDS, f"checkpoint {path}")
    except ValueError as error:
        raise DamagedError(str(error)) from error


def _is_meta(value: Any) -> bool:
    return is_object(value) and all(
        is_object(value.get(name, {})) for name in ("flags", "loss_options")
    )


FIELDS = (
    *(Field(name, "a state", lambda value: isinstance(value, dict)) for name in PARTS[:3]),
    Field("step", "a number of steps", is_count),
    Field("best", "numbers by name", lambda value: is_object(value, is_number)),
    Field("meta", "what tells of the run", _is_meta),
    Field("tested", "a step", lambda value: value == -1 or is_count(value), is_needed=False),
    *(
        Field(name, "numbers by name", lambda value: is_object(value, is_number), is_needed=False)
        for name in ("epoch", "course")
    ),
)


@dataclass(frozen=True)
class Newest:
    """The newest good checkpoint of a run, if any, and a line for each that was passed over."""

    path: Path | None
    passed_over: list[str]


def newest_good(folder: Path) -> Newest:
    """Find the newest good checkpoint of a run folder, by their steps.

    A best.pt that last.pt knows of is not newer than last.pt, even if its step is later: the run
    went back to an earlier checkpoint in between.
    """
    passed_over = []

    def read(path: Path) -> dict[str, Any] | None:
        try:
            return load_checkpoint(path)
        except (ValueError, OSError) as error:
            passed_over.append(f"passed over {path.name}: {error}")
            return None

    steps = _numbered(folder)
    last, best = (
        read(path) if path.exists() else None for path in (folder / "last.pt", folder / "best.pt")
    )
    if last is not None:
        steps[folder / "last.pt"] = last["step"]
    if best is not None:
        steps[folder / "best.pt"] = best["step"]
        if last is not None and last["best"] == best["best"]:
            steps[folder / "best.pt"] = min(best["step"], last["step"])
    for path in sorted(steps, key=lambda path: (steps[path], path.name == "last.pt"))[::-1]:
        if path.name in ("last.pt", "best.pt") or read(path) is not None:
            return Newest(path, passed_over)
    return Newest(None, passed_over)


def prune(folder: Path, keep: int, step: int) -> None:
    """Delete all but the newest `keep` numbered checkpoints of a run; 0 keeps all.

    Those of later steps than `step` go too: the run went back to before them.
    """
    steps = _numbered(folder)
    newest_first = sorted(steps, key=lambda path: -steps[path])
    current = [path for path in newest_first if steps[path] <= step]
    for path in set(newest_first) - set(current[: keep or None]):
        path.unlink()


def _numbered(folder: Path) -> dict[Path, int]:
    """Return the numbered checkpoints, step_N.pt, of a run folder and their N."""
    matches = {path: re.fullmatch(r"step_(\d+)\.pt", path.name) for path in folder.glob("*.pt")}
    return {path: int(match[1]) for path, match in matches.items() if match}
