"""Check the project on one GPU within eight minutes.

python -m benchmarks.gpu.check --out=FOLDER                     all of it, about 470 s on an H100
python -m benchmarks.gpu.check --out=FOLDER --device=cpu        the same code on tiny sizes
python -m benchmarks.gpu.check --out=FOLDER --only=nvjpeg,syncs

Every section runs in a process of its own with a time limit. What it finds is written at once, a
JSON line each, to FOLDER/gpu_check.jsonl, and printed when it ends; what it prints is in
FOLDER/gpu_check.log. Sections that check results run side by side; those that measure speed run
alone, after them.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.process import BaseProcess
from pathlib import Path

from benchmarks.common import names_among
from benchmarks.gpu.table import SECTIONS
from metric_learning.common.cli import user_errors
from metric_learning.common.flags import Flag, boolean, natural, parse_flags, path, positive

FLAGS = (
    Flag("out", path, "gpu_check", "folder of gpu_check.jsonl and gpu_check.log"),
    Flag("device", str, "cuda", "cpu: the same code on tiny sizes", ("cuda", "cpu")),
    Flag("only", names_among(SECTIONS), tuple(SECTIONS), "sections, separated by commas"),
    Flag("seconds", positive, 470, "for everything; on a CPU three times as many"),
    Flag("jobs", natural, 0, "sections side by side; 0: 8 on a GPU, 2 on a CPU"),
    Flag("list", boolean, False, "print the sections"),
)
TOGETHER_SECONDS = 175  # on a GPU, after which the measurements of speed begin
CPU_FACTOR = 3  # of all times
LOG_LENGTH = 60000  # characters of the log of a section


def main(argv: Sequence[str] | None = None) -> None:
    """Run the sections that are asked for, or list them."""
    with user_errors():
        flags = parse_flags(__doc__, FLAGS, argv)
        if flags.list:
            for name, entry in SECTIONS.items():
                print(f"{name:12} {entry.limit:4} s  {entry.does}")
            return

        begin, work = time.monotonic(), Path(tempfile.mkdtemp(prefix="gpu_check_"))
        is_cuda = flags.device == "cuda"
        if not is_cuda:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(work / "inductor")
        until = begin + flags.seconds * (1 if is_cuda else CPU_FACTOR)
        chosen = [name for name in SECTIONS if name in flags.only]
        if "data" not in chosen and any(SECTIONS[name].needs_images for name in chosen):
            chosen.insert(0, "data")
        alone = [name for name in chosen if SECTIONS[name].is_alone]
        together = [name for name in chosen if name not in alone]

        runner = Runner(Path(flags.out), work, flags.device)
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
        try:
            first_until = min(until, begin + TOGETHER_SECONDS) if is_cuda and alone else until
            runner.run(together, flags.jobs or (8 if is_cuda else 2), first_until)
            runner.run(alone, 1, until)
        finally:
            for name in list(runner.running):
                runner.end(name, "stopped")
            shutil.rmtree(work, ignore_errors=True)
        print(runner.report("all", status="ok", seconds=round(time.monotonic() - begin, 1)))


@dataclass
class Runner:
    """Runs sections and reports what they find.

    They are forked from this process, which has imported what they need, but has not touched the
    GPU.

    Attributes:
        out: folder of what is reported.
        work: folder of what is not kept.
        device: cuda or cpu.
    """

    out: Path
    work: Path
    device: str

    def __post_init__(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        self.findings, self.log = self.out / "gpu_check.jsonl", self.out / "gpu_check.log"
        for file in (self.findings, self.log):
            file.write_text("")
        self.running: dict[str, tuple[BaseProcess, float, float]] = {}  # process, begin, end

    def run(self, names: Sequence[str], most: int, until: float) -> None:
        """Run sections, at most so many at once, until a time at most."""
        queue = list(names)
        while queue or self.running:
            now = time.monotonic()
            for name, (process, _, end) in list(self.running.items()):
                if process.exitcode is not None:
                    self.end(name, f"exit {process.exitcode}" if process.exitcode else "ok")
                elif now > end:
                    self.end(name, "out of time")

            while queue and len(self.running) < most:
                name = queue.pop(0)
                limit = SECTIONS[name].limit * (1 if self.device == "cuda" else CPU_FACTOR)
                limit = min(limit, int(until - now))
                if limit < 8:
                    print(self.report(name, status="not started"))
                    continue
                self.running[name] = self.start(name, limit), now, now + limit
            time.sleep(0.1)

    def start(self, name: str, limit: float) -> BaseProcess:
        """Start the process of a section."""
        from benchmarks.gpu.section import run_section  # torch and all else, only now

        function = getattr(import_module(f"benchmarks.gpu.{SECTIONS[name].module}"), name)
        arguments = function, name, self.device, self.work, self.findings.resolve(), limit
        fork = multiprocessing.get_context("fork")
        process = fork.Process(target=run_section, args=arguments)
        process.start()
        return process

    def end(self, name: str, status: str) -> None:
        """Stop what is left of a section, and report what it found."""
        process, begin, _ = self.running.pop(name)
        assert process.pid is not None
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # its own session, see `run_section`
        process.kill()
        process.join()

        file = self.work / f"{name}.log"
        text = file.read_text(errors="replace")[-LOG_LENGTH:] if file.exists() else ""
        with self.log.open("a") as log:
            log.write(f"===== {name}: {status}\n{text}\n")
        found: dict[str, object] = {}
        for line in self.findings.read_text().splitlines():
            finding = json.loads(line)
            if finding["section"] == name:
                found |= finding
        self.report(name, status=status, seconds=round(time.monotonic() - begin, 1))
        print(json.dumps({"section": name, "status": status, **found}), flush=True)
        if name == "data" and status != "ok":
            (self.work / "data.failed").touch()  # who waits for the images waits no longer

    def report(self, name: str, **found: object) -> str:
        """Write a finding, and return its line."""
        line = json.dumps({"section": name, **found})
        with self.findings.open("a") as file:
            file.write(line + "\n")
        return line


if __name__ == "__main__":
    main()
