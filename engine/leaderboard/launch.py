"""Starts the processes of a board, shows how far they are, and writes its table."""

from __future__ import annotations

import contextlib
import math
import multiprocessing as mp
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import torch

from metric_learning.common.cli import describe
from metric_learning.common.log import log
from metric_learning.common.memory import free_memory
from metric_learning.common.optional import import_optional
from metric_learning.engine.leaderboard.boards.board import Board
from metric_learning.engine.leaderboard.live import Live
from metric_learning.engine.leaderboard.pages.page import write_page
from metric_learning.engine.leaderboard.tables.formats import write_tables
from metric_learning.engine.leaderboard.tables.results import results_of
from metric_learning.engine.leaderboard.trainings.plan import Plan
from metric_learning.engine.leaderboard.trainings.work import Interrupted, Place, work
from metric_learning.engine.parallel.devices import usable_cores

LOOK = 1.0  # seconds between two looks at how far the processes are
WRITE = 20.0  # seconds between two tables while they work, at least
BYTES_EACH = 2**31  # memory that a process on the CPU should have
INTERRUPTED = 130  # exit status of a process that a signal has told to stop
GRACE = 60.0  # seconds in which a process that is to stop saves its training


@dataclass(frozen=True)
class Machines:
    """Where a board is computed.

    Attributes:
        jobs: processes; None: one for each device, on the CPU one for each core with memory enough.
        devices: of the processes in turn, such as ("cuda:0", "cuda:1"); empty: as --device=auto.
        launcher: `processes`, or of submitit `slurm` or `local`.
        launcher_options: of submitit's executor, such as slurm_partition.
    """

    jobs: int | None
    devices: tuple[str, ...]
    launcher: str
    launcher_options: Mapping[str, str]


def run_board(
    board: Board, output: Path, machines: Machines, seconds: float | None = None
) -> dict[str, Any]:
    """Do all that is open of a board, write its table at times, and return it.

    Processes of this machine stop after so many seconds, if given, whatever is still open then.
    Raises Interrupted where a signal has stopped the processes.
    """
    places = places_of(machines)
    log(f"{len(places)} process(es), {places[0].threads} thread(s) each; {output}")
    if machines.launcher != "processes":
        submit(board, output, places, machines)
    else:
        run_processes(board, output, places, seconds)
    return write_results(Plan(board, output))


def write_results(plan: Plan) -> dict[str, Any]:
    """Write the tables and the page of a plan as far as it is done, and return what they hold."""
    found = results_of(plan)
    write_tables(found, plan.output)
    write_page(found, plan.output)
    return found


def places_of(machines: Machines) -> list[Place]:
    """Return a place for each process: its device, and its share of the cores.

    On the CPU each has one thread: two with one each do twice of what one does with two, and the
    figures do not depend on how many there are.
    """
    cores = usable_cores()
    if machines.devices:
        if machines.launcher == "processes":
            check_devices(machines.devices)
        jobs = machines.jobs or len(machines.devices)
        threads = max(1, cores // jobs)
        devices = [machines.devices[n % len(machines.devices)] for n in range(jobs)]
        return [Place((f"--device={device}",), threads) for device in devices]
    free = free_memory() or BYTES_EACH * cores
    jobs = machines.jobs or max(1, min(cores, int(free // BYTES_EACH)))
    return [Place((), 1)] * jobs


def check_devices(names: Sequence[str]) -> None:
    """Raise ValueError where a device is not there: all trainings would fail."""
    for name in names:
        try:
            device = torch.device(name)
        except RuntimeError:
            raise ValueError(f"--devices={name}: expected numbers of GPUs, such as 0,1") from None
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            found = torch.cuda.device_count()
            raise ValueError(f"--devices={name}: there are {found} GPUs here, counted from 0")


def run_processes(
    board: Board, output: Path, places: Sequence[Place], seconds: float | None
) -> None:
    """Let processes of this machine do what is open, for so many seconds if they are given.

    Raises OSError where they ended before all of it was done, Interrupted where a signal told them.
    """
    context = mp.get_context("spawn")
    reasons = context.SimpleQueue()
    processes = [
        context.Process(target=_work, args=(board, output, place, reasons)) for place in places
    ]
    with stopping(processes):
        for process in processes:
            process.start()
        until = math.inf if seconds is None else time.monotonic() + seconds
        follow(board, output, lambda: are_alive(processes) and time.monotonic() < until)
        if are_alive(processes):
            log("the time is over: rows that have not come to their end do not count")
            stop_all(processes)
            return

    codes = [code for code in (process.exitcode for process in processes) if code]
    if codes and Plan(board, output).open_tasks():
        if INTERRUPTED in codes:
            raise Interrupted
        raise OSError(reason_of(codes[0]) if reasons.empty() else reasons.get())


def reason_of(code: int) -> str:
    """Say why a process has ended, from its exit status, and what to do."""
    if code > 0:
        return "a process has failed, its traceback is above: the same command goes on"
    return (
        f"a process was ended by {signal.Signals(-code).name}, perhaps for want of memory: the "
        "same command goes on, with a lower --jobs it takes less"
    )


def _work(
    board: Board, output: Path, place: Place, reasons: SimpleQueue[str] | None = None
) -> None:
    """Work as a process of its own; what ends it by a user's or the machine's fault is told."""
    os.environ["OMP_NUM_THREADS"] = str(place.threads)
    end_with(mp.parent_process())
    try:
        work(Plan(board, output), place)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:
        reason = describe(error)
        if reason is None or reasons is None:
            raise
        reasons.put(reason)
        sys.exit(2)


def end_with(parent: BaseProcess | None) -> None:
    """Stop this process, its training saved, once its parent is gone, even by kill -9."""
    if parent is None:  # a job of a batch system
        return

    def stop() -> None:
        parent.join()
        while True:  # a training that is about to end takes no notice of the first one
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(LOOK)

    threading.Thread(target=stop, daemon=True).start()


@contextlib.contextmanager
def stopping(processes: Sequence[BaseProcess]) -> Iterator[None]:
    """Let processes save and end where this one is asked to, or fails; a second signal kills them.

    Ctrl-C in a terminal has reached them already, which does no harm.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def stop(number: int, frame: object) -> None:
        for other in before:
            signal.signal(other, kill)
        raise KeyboardInterrupt

    def kill(number: int, frame: object) -> None:
        for process in started(processes):
            process.kill()

    for number in before:
        signal.signal(number, stop)
    try:
        yield
    except BaseException as error:
        stop_all(processes)
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted from None
        raise
    finally:
        for process in started(processes):
            process.join()
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_all(processes: Sequence[BaseProcess]) -> None:
    """Let processes save their trainings and end; those that do not are killed."""
    end = time.monotonic() + GRACE
    while are_alive(processes):
        for process in started(processes):
            # Again and again: a training that is about to end takes no notice of the first one.
            process.terminate() if time.monotonic() < end else process.kill()
        time.sleep(LOOK)


def are_alive(processes: Sequence[BaseProcess]) -> bool:
    """Whether any of them is at work."""
    return any(process.is_alive() for process in started(processes))


def started(processes: Sequence[BaseProcess]) -> list[BaseProcess]:
    """Return those that have been started."""
    return [process for process in processes if process.pid is not None]


def follow(board: Board, output: Path, is_working: Callable[[], bool]) -> None:
    """Show how far the trainings are, and write the table now and then, while others work."""
    plan = Plan(board, output)
    live, written = Live(plan), time.monotonic()
    is_last = False

    while not is_last:
        is_last = not is_working()
        plan.refresh()
        live.update()
        took = time.monotonic()
        if took - written > WRITE:
            write_results(plan)
            written = 2 * time.monotonic() - took  # at most half of this process's time
        time.sleep(0 if is_last else LOOK)
    live.close()


def submit(board: Board, output: Path, places: Sequence[Place], machines: Machines) -> None:
    """Let jobs of a batch system do what is open, and follow them; they go on without this process.

    Raises ValueError where submitit is not installed.
    """
    submitit = import_optional("submitit", f"--launcher={machines.launcher}")
    executor = submitit.AutoExecutor(output / "jobs", cluster=machines.launcher)
    numbers = {n: int(v) if v.isdecimal() else v for n, v in machines.launcher_options.items()}
    executor.update_parameters(name=f"board_{board.name}", **numbers)
    with executor.batch():
        jobs = [executor.submit(_work, board, output.resolve(), place) for place in places]
    log(f"jobs {', '.join(str(job.job_id) for job in jobs)} of {machines.launcher}")
    follow(board, output, lambda: not all(job.done() for job in jobs))
