"""One process of a board: it does what is open and nobody else does, until nothing is left."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
import socket
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from metric_learning import train_elem, train_pair
from metric_learning.common.cli import describe
from metric_learning.common.flags import Flags
from metric_learning.common.schema import Field, check_fields, is_object, read_json
from metric_learning.engine.leaderboard.trainings.claims import Claims
from metric_learning.engine.leaderboard.trainings.outcomes import Outcome
from metric_learning.engine.leaderboard.trainings.plan import Plan
from metric_learning.engine.leaderboard.trainings.tasks import Task
from metric_learning.engine.options.training_table import ELEM, PAIR, parse_training
from metric_learning.engine.run.checkpoints import load_checkpoint
from metric_learning.engine.run.records import read_records
from metric_learning.engine.run.run_folder import BusyError, minutes_of
from metric_learning.engine.train import stages
from metric_learning.engine.train.train import train

POLL = 2.0  # seconds between looks where others do all that is open
CLAIMS = "claims"
# What a run leaves that nobody needs any more once it has been measured.
SPENT = ("best.pt", "best.safetensors", "last.safetensors")
# Errors of the machine, not of a training: they stop the board, and the same command goes on.
OF_THE_MACHINE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE),
    *(errno.EMFILE, errno.ENFILE),
)
HIGHEST_MEMORY = "/proc/self/clear_refs", "5"  # sets what VmHWM tells back to what is taken now


@dataclass(frozen=True)
class Place:
    """Where a worker computes: flags that change no result, such as --device=cuda:1."""

    words: tuple[str, ...] = ()
    threads: int = 1


class Interrupted(KeyboardInterrupt):
    """A signal has stopped a training: it is saved, and goes on with the same command."""


def work(plan: Plan, place: Place) -> None:
    """Do the open tasks of a plan that nobody else does, and wait for those of others."""
    torch.set_num_threads(place.threads)
    claims = Claims(plan.output / CLAIMS)
    while True:
        plan.refresh()
        tasks = plan.open_tasks()
        if not tasks:
            return
        if not any(_do(task, plan, claims, place) for task in tasks):
            time.sleep(POLL)
        for path in plan.spent_weights():
            path.unlink(missing_ok=True)


def _do(task: Task, plan: Plan, claims: Claims, place: Place) -> bool:
    """Do a task unless somebody else does or has; whether something was done."""
    if not claims.take(task.folder.replace("/", "+")):
        return False
    try:
        if plan.outcome(task) is None:
            run_task(task, plan.output, place)
        return True
    except BusyError:  # an owner that had stood still has woken up
        return False
    finally:
        claims.release()


def run_task(task: Task, output: Path, place: Place, *, is_tested: bool = True) -> Outcome:
    """Run a training, and write and return its outcome.

    Raises Interrupted where a signal stops it, OSError where a full disk or the like does.
    """
    folder = output / task.folder
    earlier, started = minutes_of(folder), time.perf_counter()  # of starts that were killed
    forget_peak()
    failure = None
    try:
        with quiet():
            run_training(task, [*task.words(output), *place.words])
    except BusyError:
        raise
    except Exception as error:
        if is_of_the_machine(error):
            raise
        failure = describe(error)
        if failure is None:
            failure = " ".join(f"{type(error).__name__}: {error}".split())
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "traceback.txt").write_text(traceback.format_exc(), "utf-8")
        failure = failure.replace(f"{output}/", "")  # which may lie elsewhere on another machine
    if failure is None and not is_finished(folder):
        raise Interrupted
    metrics = read_metrics(folder) if is_tested and failure is None else {}

    outcome = Outcome(
        metrics=metrics,
        minutes=earlier + (time.perf_counter() - started) / 60,
        memory_mib=peak_mib(),
        images=count_images(folder) if failure is None else 0.0,
        host=f"{socket.gethostname()}, {device_name()}",
        failure=failure,
    )
    folder.mkdir(parents=True, exist_ok=True)
    for name in SPENT:
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "tensorboard", ignore_errors=True)
    outcome.save(folder)
    return outcome


def is_of_the_machine(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, tells of the machine and not of the training."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in OF_THE_MACHINE:
            return True
        error = error.__cause__ or error.__context__
    return False


def run_training(task: Task, words: list[str]) -> None:
    """Train as the task's script does; errors of any kind pass."""
    is_elem = task.script == "train_elem.py"
    train(check_words(task, words), stages.ELEM if is_elem else stages.PAIR)


def check_words(task: Task, words: list[str]) -> Flags:
    """Parse a command line as the task's script does; ValueError where it would not take it."""
    is_elem = task.script == "train_elem.py"
    table, losses = (train_elem.FLAGS, ELEM) if is_elem else (train_pair.FLAGS, PAIR)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return parse_training(None, losses, table, words)
    except SystemExit:
        reason = said.getvalue().strip().removeprefix("error: ")
        raise ValueError(reason) from None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Let a training print nothing; its run folder has what it says."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def is_finished(folder: Path) -> bool:
    """Whether a run has done its last step, and the test that follows it, if any."""
    flags = settled_flags(folder)
    checkpoint = load_checkpoint(folder / "last.pt")
    step = flags["total_iter_num"]
    is_tested = not flags["test_iter_step"] or checkpoint["tested"] == step
    return checkpoint["step"] == step and is_tested


def read_metrics(folder: Path) -> dict[str, float]:
    """Return the metrics of the last test of a run, as fractions."""
    tests = [r for r in read_records(folder / "stats.jsonl") if r["kind"] == "test"]
    numbers = {name: v for name, v in tests[-1].items() if isinstance(v, int | float)}
    return {name: float(v) for name, v in numbers.items() if name != "step"}


def count_images(folder: Path) -> float:
    """Return how many images a run was trained on."""
    flags = settled_flags(folder)
    return float(flags["total_iter_num"] * flags["train_batch_size"])


def settled_flags(folder: Path) -> Mapping[str, Any]:
    """Return the flags of a run as it settled them."""
    path = folder / "args.json"
    fields = [Field("flags", "an object", is_object)]
    flags: Mapping[str, Any] = check_fields(read_json(path, str(path)), fields, str(path))["flags"]
    return flags


def forget_peak() -> None:
    """Let `peak_mib` count from here on, where the system can."""
    path, word = HIGHEST_MEMORY
    with contextlib.suppress(OSError):
        Path(path).write_text(word)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_mib() -> float:
    """Return the most memory that this process has taken, of the GPU if it has one, in MiB."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**20
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0.0
    found = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
    return found[0] / 2**10 if found else 0.0


def device_name() -> str:
    """Return the GPU, or the number of threads."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{torch.get_num_threads()} of {os.cpu_count()} cores"
