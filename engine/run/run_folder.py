"""The run folder: arguments, log, statistics and TensorBoard curves of one training run."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from metric_learning.common.atomic import remove_leftovers, write_json, write_text
from metric_learning.common.log import log, timestamped, versions
from metric_learning.common.places import LATEST
from metric_learning.common.schema import Field, check_fields, is_list_of, is_object, read_json
from metric_learning.common.text_files import check_regular, read_text
from metric_learning.engine.options.parts import RunOptions
from metric_learning.engine.run.records import read_records, write_scores
from metric_learning.engine.run.tracking import Trackers
from metric_learning.retrieval.scores import QueryScores

# What a run writes atomically.
FILES = re.compile(
    r"(last|best|step_\d+)\.(pt|safetensors)|args\.json|stats\.jsonl|\w+_(images|scores)\.npz"
)


TIME = re.compile(r"\d{4}(-\d\d){2} \d\d(:\d\d){2}")  # before a log line, see `timestamped`
MOST_OF_LOG = 2**28  # bytes of a log that are read
RESUMED = Field("resumed", "a list of calls", is_list_of(is_object), is_needed=False)


class BusyError(ValueError):
    """Another process writes to the run folder."""


def own_folder(run: RunOptions) -> Path:
    """Return the run folder that the flags name, whether or not a run is in it."""
    base = f"{re.sub('[/:]', '_', run.model)}_{run.loss_name.replace(':', '_')}"
    return Path(run.model_save_dir) / (run.run_name or base)


def choose_folder(run: RunOptions, is_named: bool) -> Path:
    """Choose the run folder, that of no other run, or ValueError where --run_name asks for one.

    Resuming a checkpoint goes on in the folder that holds it, unless another one `is_named`.
    """
    resumed = Path(run.checkpoint).resolve().parent if run.checkpoint else None
    if resumed is not None and not is_named:
        return resumed

    base = folder = own_folder(run)
    number = 1
    while _holds_run(folder) and folder.resolve() != resumed:
        if run.run_name is not None:
            raise ValueError(
                f"run folder {folder} holds another run: choose another --run_name, or resume it "
                f"with --checkpoint=auto or --checkpoint={folder / 'last.pt'}"
            )
        number += 1
        folder = base.with_name(f"{base.name}-{number}")
    return folder


def _holds_run(folder: Path) -> bool:
    return (folder / "args.json").exists() or any(folder.glob("*.pt"))


def link_latest(folder: Path) -> None:
    """Let `latest`, beside a run folder, link to it, so that what comes next finds the newest run.

    A file or folder of that name is left alone, and so is all where there are no links.
    """
    link = folder.parent / LATEST
    if link == folder or (link.exists() and not link.is_symlink()):
        return
    temporary = link.with_name(f".{LATEST}.{os.getpid()}.tmp")
    with contextlib.suppress(OSError):
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(folder.name, target_is_directory=True)
        os.replace(temporary, link)


def _describe_call(path: Path, settled: Mapping[str, Any]) -> None:
    """Write args.json; the calls that resumed the run are listed in it under `resumed`."""
    described: dict[str, Any] = {
        "command": sys.argv,
        "flags": dict(settled),
        "versions": versions(),
        "started": timestamped("")[1:-2],
    }

    if path.exists():
        try:
            first = check_fields(read_json(path, str(path)), [RESUMED], str(path))
            described = first | {"resumed": [*first.get("resumed", []), described]}
        except ValueError as error:
            raise ValueError(
                f"{error}; delete it, checkpoints know their flags themselves"
            ) from error
    write_json(path, described)


def minutes_of(folder: Path) -> float:
    """Return how long the starts of a run have taken, in minutes, each until its last log line.

    What its files do not tell is not counted: a start that was killed before a line of it, the time
    after the last line, and all where args.json or the log is damaged or not there.
    """
    try:
        path = folder / "args.json"
        first = check_fields(read_json(path, str(path)), [RESUMED], str(path))
        text = read_text(folder / "log.txt", "the log", MOST_OF_LOG, errors="replace")
    except (OSError, ValueError):
        return 0.0
    calls = [first, *first.get("resumed", [])]
    begins = sorted(filter(None, (_time_in(str(call.get("started"))) for call in calls)))
    times = list(filter(None, (_time_in(line[1:20]) for line in text.splitlines())))

    seconds = 0.0
    for begin, end in zip(begins, [*begins[1:], datetime.max], strict=True):
        last = max((time for time in times if begin <= time < end), default=begin)
        seconds += (last - begin).total_seconds()
    return seconds / 60


def _time_in(text: str) -> datetime | None:
    """Parse a time as log lines have it; None where it is none."""
    try:
        return datetime.fromisoformat(text) if TIME.fullmatch(text) else None
    except ValueError:
        return None


def _drop_later_records(path: Path, step: int, tested: int) -> None:
    """Drop the records that a resumed run will write again, and a torn last line."""
    if path.exists():
        last_steps = {"train": step, "test": tested, "epoch": tested}
        lines = [
            json.dumps(record) + "\n"
            for record in read_records(path)
            if record["step"] <= last_steps.get(record["kind"], step)
        ]
        write_text(path, "".join(lines))


class RunFolder:
    """Writes what happens in a run; on all ranks but the first it writes nothing.

    The folder is created, and locked as long as the run is open. A process that is killed leaves no
    lock. Records after the `step` that the run goes on from are replaced, and those of tests after
    the last one `tested`. args.json gets what was `settled`, a value per flag, and so do the
    trackers that `log_to` names.

    Raises BusyError where another process writes to the folder, ValueError where a file of it is
    damaged.
    """

    def __init__(
        self,
        folder: Path,
        settled: Mapping[str, Any],
        is_main: bool = True,
        step: int = 0,
        tested: int = -1,
        log_to: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self.is_main = is_main
        if not is_main:
            return

        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name in ("log.txt", "stats.jsonl"):
                check_regular(folder / name, str(folder / name))
            self._log_file = (folder / "log.txt").open(
                "a", encoding="utf-8", errors="backslashreplace", buffering=1
            )
            if _lock(self._log_file):
                remove_leftovers(folder, FILES)
            is_undescribed = not (folder / "args.json").exists() and _holds_run(folder)
            _drop_later_records(folder / "stats.jsonl", step, tested)
            _describe_call(folder / "args.json", settled)
            link_latest(folder)
            self._stats_file = (folder / "stats.jsonl").open("a", encoding="utf-8", buffering=1)
            self._curves = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        except OSError as error:
            raise OSError(
                f"cannot write to {folder} ({error.strerror}): choose another --model_save_dir"
            ) from error

        self._trackers = Trackers(log_to, folder, settled, self._curves, self.log)
        self._excepthook = threading.excepthook
        threading.excepthook = self._report_thread
        if is_undescribed:
            self.log("args.json was missing: the new one tells of this call alone")

    def _report_thread(self, failure: threading.ExceptHookArgs) -> None:
        """Keep quiet of the thread that writes the curves: `record` raises what it raised."""
        if not isinstance(failure.exc_value, OSError):
            self._excepthook(failure)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with contextlib.suppress(OSError) if kind else contextlib.nullcontext():
            self.close(has_failed=kind is not None)

    def log(self, line: str) -> None:
        """Print a line and append it to log.txt."""
        if self.is_main:
            with self._naming("log.txt"):
                self._log_file.write(log(line) + "\n")

    def record(self, kind: str, step: int, **values: Any) -> None:
        """Append a record to stats.jsonl and its numbers to the TensorBoard curves."""
        if not self.is_main:
            return
        with self._naming("stats.jsonl"):
            self._stats_file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        with self._naming("tensorboard"):
            for name, value in values.items():
                self._curves.add_scalar(f"{kind}/{name}", value, step)
        self._trackers.write_figures(kind, step, values)

    def show(self, step: int, name: str, draw: Callable[[], np.ndarray]) -> None:
        """Let the trackers, if any, keep a picture (H, W, 3) uint8, which is drawn for them."""
        if self.is_main:
            self._trackers.write_picture(step, name, draw)

    def keep_scores(self, scores: QueryScores) -> None:
        """Write what each query of a test scored, in place of those of the test before."""
        if self.is_main:
            with self._naming("test_scores.npz"):
                write_scores(self.folder, scores)

    @contextlib.contextmanager
    def _naming(self, name: str) -> Iterator[None]:
        """Say in an OSError which file could not be written."""
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.folder / name)) from error

    def close(self, has_failed: bool = False) -> None:
        """Close the files, and the trackers first, whose errors are lines of the log."""
        if not self.is_main:
            return
        self._trackers.close(has_failed)
        threading.excepthook = self._excepthook
        with contextlib.ExitStack() as files:
            files.callback(self._log_file.close)
            files.callback(self._stats_file.close)
            files.callback(self._curves.close)


def _lock(file: TextIO) -> bool:
    """Keep other processes from a file until it is closed; False where files have no locks."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise BusyError(
            f"another process writes to {Path(file.name).parent}: wait for its end, or choose "
            "another --run_name"
        ) from None
    except OSError:
        return False
    return True
