"""The run folder: arguments, log, statistics and TensorBoard curves of one training run."""

from __future__ import annotations

import json
import platform
import sys
from argparse import Namespace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from models.atomic import write_json


def timestamped(line: str) -> str:
    """Put the time before a log line, in the reference's form."""
    return f"[{datetime.now():%Y-%m-%d %H:%M:%S}] {line}"


def log(line: str) -> str:
    """Print a log line and return it with its time; a progress bar is kept below it."""
    stamped = timestamped(line)
    tqdm.write(stamped)
    sys.stdout.flush()
    return stamped


def versions() -> dict[str, str]:
    """Return the versions of what a result depends on."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
    }


def choose_folder(args: Namespace, given: set[str]) -> Path:
    """Choose the run folder below --model_save_dir, so that no earlier run is overwritten.

    Resuming a checkpoint goes on in the folder that holds it, unless another is named.

    Raises:
        ValueError: --run_name names the folder of another run.
    """
    resumed = Path(args.checkpoint).resolve().parent if args.checkpoint else None
    if resumed is not None and not given & {"model_save_dir", "run_name"}:
        return resumed
    root = Path(args.model_save_dir)
    if args.run_name is not None:
        folder = root / args.run_name
        if (folder / "args.json").exists() and folder.resolve() != resumed:
            raise ValueError(
                f"run folder {folder} holds another run: choose another --run_name, or resume it "
                f"with --checkpoint={folder / 'last.pt'}"
            )
        return folder
    base = f"{args.model.replace('/', '_')}_{args.loss_name.replace(':', '_')}"
    folder, number = root / base, 1
    while (folder / "args.json").exists() and folder.resolve() != resumed:
        number += 1
        folder = root / f"{base}-{number}"
    return folder


def _describe_call(path: Path, args: Namespace) -> None:
    """Write args.json; the calls that resumed the run are listed in it under `resumed`."""
    described: dict[str, Any] = {
        "command": sys.argv,
        "flags": vars(args),
        "versions": versions(),
        "started": timestamped("")[1:-2],
    }
    if path.exists():
        first = json.loads(path.read_text(encoding="utf-8"))
        described = first | {"resumed": [*first.get("resumed", []), described]}
    write_json(path, described)


class Run:
    """Writes what happens in a run; on all ranks but the first it writes nothing.

    Args:
        folder: run folder, created here.
        args: written to args.json with the versions and the command.
        is_main: whether this process writes.
        step: the step that the run goes on from; later points of the curves are replaced.

    Raises:
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path, args: Namespace, is_main: bool = True, step: int = 0) -> None:
        self.folder = folder
        self.is_main = is_main
        if not is_main:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _describe_call(folder / "args.json", args)
        except OSError as error:
            raise OSError(
                f"cannot write to {folder} ({error.strerror}): choose another --model_save_dir"
            ) from error
        self._log_file = (folder / "log.txt").open("a", encoding="utf-8", buffering=1)
        self._stats_file = (folder / "stats.jsonl").open("a", encoding="utf-8", buffering=1)
        self._curves = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def log(self, line: str) -> None:
        """Print a line and append it to log.txt."""
        if self.is_main:
            self._log_file.write(log(line) + "\n")

    def record(self, kind: str, step: int, **values: Any) -> None:
        """Append a record to stats.jsonl and its numbers to the TensorBoard curves."""
        if not self.is_main:
            return
        self._stats_file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        for name, value in values.items():
            self._curves.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Close the files."""
        if self.is_main:
            self._log_file.close()
            self._stats_file.close()
            self._curves.close()
