"""Starts the processes of a board, shows how far they are, and writes its table."""

from __future__ import annotations

import contextlib
import multiprocessing as mp
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

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
GRACE = 60.0  # seconds in which a process that is to stop saves its training
LAUNCHERS = ("processes", "slurm", "local")


@dataclass(frozen=True)
class Machines:
    """Where a board is computed.

    Attributes:
        jobs: processes; None: one for each device, on the CPU one for each core with memory enough.
        devices: of the processes in turn, such as ("cuda:0", "cuda:1"); empty: as --device=auto.
        launcher: one of LAUNCHERS, the last two of submitit.
        launcher_options: of submitit's executor, such as slurm_partition.
    """

    jobs: int | None
    devices: tuple[str, ...]
    launcher: str
    launcher_options: Mapping[str, str]


def run_board(board: Board, output: Path, machines: Machines) -> dict[str, Any]:
    """Do all that is open of a board, write its table at times, and return it.

    Raises Interrupted where a signal has stopped the processes.
    """
    places = places_of(machines)
    log(f"{len(places)} process(es), {places[0].threads} thread(s) each; {output}")
    if machines.launcher != "processes":
        submit(board, output, places, machines)
    else:
        run_processes(board, output, places)
    plan = Plan(board, output)
    found = results_of(plan)
    write_tables(found, output)
    write_page(found, output)
    return found


def places_of(machines: Machines) -> list[Place]:
    """Return a place for each process: its device, and its share of the cores.

    On the CPU each has one thread: two with one each do twice of what one does with two, and the
    figures do not depend on how many there are.
    """
    cores = usable_cores()
    if machines.devices:
        jobs = machines.jobs or len(machines.devices)
        threads = max(1, cores // jobs)
        devices = [machines.devices[n % len(machines.devices)] for n in range(jobs)]
        return [Place((f"--device={device}",), threads) for device in devices]
    free = free_memory() or BYTES_EACH * cores
    jobs = machines.jobs or max(1, min(cores, int(free // BYTES_EACH)))
    return [Place((), 1)] * jobs


def run_processes(board: Board, output: Path, places: Sequence[Place]) -> None:
    """Let processes of this machine do what is open."""
    context = mp.get_context("spawn")
    processes = [
        context.Process(target=_work, args=(board, output, place), daemon=False) for place in places
    ]
    for process in processes:
        process.start()
    with stopping(processes):
        follow(board, output, lambda: any(process.is_alive() for process in processes))
    codes = [process.exitcode for process in processes]
    if any(codes):
        raise Interrupted


def _work(board: Board, output: Path, place: Place) -> None:
    os.environ["OMP_NUM_THREADS"] = str(place.threads)
    try:
        work(Plan(board, output), place)
    except (Interrupted, KeyboardInterrupt):
        sys.exit(1)


@contextlib.contextmanager
def stopping(processes: Sequence[BaseProcess]) -> Iterator[None]:
    """Let processes save and end where this one is asked to, or fails; a second signal kills them.

    Ctrl-C in a terminal has reached them already, which does no harm.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def stop(number: int, frame: object) -> None:
        for other in before:
            signal.signal(other, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in before:
        signal.signal(number, stop)
    try:
        yield
    except BaseException as error:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join(GRACE)
            process.kill()
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted from None
        raise
    finally:
        for process in processes:
            process.join()
        for number, handler in before.items():
            signal.signal(number, handler)


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
            found = results_of(plan)
            write_tables(found, output)
            write_page(found, output)
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
