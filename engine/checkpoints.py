"""Training checkpoints: everything that a run needs to go on, written atomically."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from models.atomic import write_atomically

PARTS = (
    *("model", "live_model", "criterion", "optimizer", "scaler"),
    *("step", "best", "random_state", "meta"),
)


def save_checkpoint(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write a checkpoint with the parts named in PARTS, atomically.

    Raises:
        OSError: it cannot be written; what was at `path` is still there.
    """
    assert tuple(checkpoint) == PARTS
    try:
        write_atomically(path, lambda temporary: torch.save(checkpoint, temporary))
    except RuntimeError as error:  # what torch.save makes of a full disk
        raise OSError(
            f"cannot write {path}, is the disk full? Checkpoints written before are whole"
        ) from error


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a training checkpoint of this project; a stranger's file cannot run code.

    Raises:
        ValueError: the file is damaged or no training checkpoint.
        OSError: it cannot be read.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, UnicodeDecodeError) as error:
        raise ValueError(
            f"checkpoint {path} is damaged or not written by this project: "
            "choose another one of the run"
        ) from error
    if not isinstance(checkpoint, dict) or set(checkpoint) != set(PARTS):
        raise ValueError(
            f"{path} holds weights but no training state: give it as --pretrained_model, which "
            "takes weights only; --checkpoint resumes a run from its last.pt"
        )
    return checkpoint


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` numbered checkpoints of a run; 0 keeps all."""
    if keep:
        for path in sorted(folder.glob("step_*.pt"), key=_step_of)[:-keep]:
            path.unlink()


def _step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step_"))
