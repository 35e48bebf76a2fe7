"""Check the project on one GPU within nine minutes.

python -m benchmarks.gpu.check --out=FOLDER                     all of it, 500 s at most
python -m benchmarks.gpu.check --out=FOLDER --device=cpu        the same code on tiny sizes
python -m benchmarks.gpu.check --out=FOLDER --only=nvjpeg,syncs

Every section runs in a process of its own with a time limit. What it finds is written at once, a
JSON line each, to FOLDER/gpu_check.jsonl, and printed when it ends; what it prints is in
FOLDER/gpu_check.log. The images are drawn first; then sections that check results run side by side,
and after them those that measure speed, alone.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

from benchmarks.common import names_among
from metric_learning.common.cli import user_errors
from metric_learning.common.flags import Flag, parse_flags, path
from metric_learning.common.outputs import kind_of_file, prepare_output


class Entry(NamedTuple):
    """A section: the function of its name in a module of benchmarks.gpu; its limit in seconds."""

    module: str
    limit: int
    is_alone: bool = False  # it measures speed, and nothing runs beside it


SECTIONS = {
    "data": Entry("images", 80),
    "stages": Entry("training", 200),
    "compiled": Entry("training", 165),
    "losses": Entry("losses", 150),
    "tests": Entry("machine", 150),
    "nvjpeg": Entry("images", 120),
    "two_ranks": Entry("processes", 150),
    "resume": Entry("training", 150),
    "nccl": Entry("processes", 100),
    "syncs": Entry("training", 90),
    "precision": Entry("machine", 60),
    "env": Entry("machine", 40),
    "ceilings": Entry("machine", 20, True),
    "augment": Entry("images", 20, True),
    "train_speed": Entry("speed", 135, True),
    "retrieval": Entry("speed", 80, True),
    "extraction": Entry("speed", 60, True),
    "big_batch": Entry("training", 75, True),
    "loss_speed": Entry("losses", 30, True),
}
FLAGS = (
    Flag("out", path, "gpu_check", "folder of gpu_check.jsonl and gpu_check.log"),
    Flag("device", str, "cuda", "cpu: the same code on tiny sizes", ("cuda", "cpu")),
    Flag("only", names_among(SECTIONS), tuple(SECTIONS), "sections, separated by commas"),
)
ALL_SECONDS, TOGETHER_SECONDS = 500, 205  # in all, and until the measurements of speed begin
CPU_FACTOR = 3  # of all times


def main(argv: Sequence[str] | None = None) -> None:
    """Run the sections that are asked for, and the drawing of the images."""
    with user_errors(), tempfile.TemporaryDirectory(prefix="gpu_check_") as work:
        flags = parse_flags(__doc__, FLAGS, argv)
        if flags.device == "cpu":
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{work}/inductor"
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))

        runner = Runner(Path(flags.out), Path(work), flags.device)
        chosen = [name for name in SECTIONS if name in flags.only and name != "data"]
        alone = [name for name in chosen if SECTIONS[name].is_alone]
        together = [name for name in chosen if name not in alone]
        runner.run(["data"], 1, ALL_SECONDS)
        most = 8 if flags.device == "cuda" else 2
        runner.run(together, most, TOGETHER_SECONDS if alone else ALL_SECONDS)
        runner.run(alone, 1, ALL_SECONDS)
        runner.report("all", "ok")


def begins_with(beginning: bytes, file: Path) -> bool:
    """Whether a file begins with some bytes."""
    with file.open("rb") as opened:
        return opened.read(len(beginning)) == beginning


class Runner:
    """Runs sections and reports what they find in folder `out`; `work` is not kept.

    They are forked from this process, which has imported what they need, but has not touched the
    GPU.
    """

    def __init__(self, out: Path, work: Path, device: str) -> None:
        self.work, self.device, self.begin = work, device, time.monotonic()
        self.factor = 1 if device == "cuda" else CPU_FACTOR
        self.findings, self.log = out / "gpu_check.jsonl", out / "gpu_check.log"
        for file, beginning in ((self.findings, b'{"section": '), (self.log, b"===== ")):
            kind = kind_of_file("a file of this check", partial(begins_with, beginning))
            prepare_output(None, file, kind).write_text("")

    def run(self, names: Sequence[str], most: int, until: float) -> None:
        """Run sections, at most so many at once, until so many seconds after the begin."""
        queue, running = list(names), dict[str, BaseProcess]()
        try:
            while queue or running:
                while queue and len(running) < most:
                    name = queue.pop(0)
                    left = self.begin + until * self.factor - time.monotonic()
                    limit = min(SECTIONS[name].limit * self.factor, int(left))
                    if limit < 8:
                        self.report(name, "not started")
                    else:
                        running[name] = self.start(name, most, limit)

                wait([process.sentinel for process in running.values()])
                for name in [name for name, process in running.items() if not process.is_alive()]:
                    self.end(name, running.pop(name))
        finally:
            for name, process in running.items():
                self.end(name, process)

    def start(self, name: str, sharers: int, limit: int) -> BaseProcess:
        """Start the process of a section, one of so many at once."""
        from benchmarks.gpu.section import run_section  # torch and all else, only now

        function = getattr(import_module(f"benchmarks.gpu.{SECTIONS[name].module}"), name)
        arguments = function, name, self.device, self.work, self.findings, sharers, limit
        fork = multiprocessing.get_context("fork")
        process = fork.Process(target=run_section, args=arguments)
        process.start()
        return process

    def end(self, name: str, process: BaseProcess) -> None:
        """Stop what is left of a section, and report what it found."""
        assert process.pid is not None
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # its own session, see `run_section`
        process.kill()
        process.join()

        ends = {0: "ok", -signal.SIGALRM: "out of time"}
        self.report(name, ends.get(process.exitcode or 0, f"exit {process.exitcode}"))
        file = self.work / f"{name}.log"
        with self.log.open("a") as log:
            log.write(f"===== {name}\n{file.read_text(errors='replace') if file.exists() else ''}")

    def report(self, name: str, status: str) -> None:
        """Write how a section ended, and print all that it found."""
        seconds = round(time.monotonic() - self.begin, 1)
        with self.findings.open("a") as file:
            file.write(json.dumps({"section": name, "status": status, "until": seconds}) + "\n")
        for line in self.findings.read_text().splitlines():
            if json.loads(line)["section"] == name:
                print(line, flush=True)


if __name__ == "__main__":
    main()
