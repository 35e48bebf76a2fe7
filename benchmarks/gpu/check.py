"""Check the project on one GPU within eight minutes.

python -m benchmarks.gpu.check --out=FOLDER                     all of it, about 470 s on an H100
python -m benchmarks.gpu.check --out=FOLDER --device=cpu        the same code on tiny sizes
python -m benchmarks.gpu.check --out=FOLDER --only=nvjpeg,syncs

Every section runs in a process of its own with a time limit. What it finds is written at once, a
JSON line each, to OUT/gpu_check.jsonl; when it ends, one line with all of it is printed. What the
sections print is in OUT/gpu_check.log. Those that check results run side by side; those that
measure speed run alone, after them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, names_among
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
CPU_FACTOR = 3  # of all limits
LOG_LENGTH = 60000  # characters of the log of a section


@dataclass
class Job:
    """The process of a section; it works from `begin` to `until` at most, once it may."""

    process: subprocess.Popen[bytes]
    begin: float = 0.0
    until: float = float("inf")


class Runner:
    """Starts the sections and reports what they wrote.

    Args:
        out: folder of what is reported.
        work: folder of what is not kept.
        device: cuda or cpu.
        seconds: for everything.
    """

    def __init__(self, out: Path, work: Path, device: str, seconds: float) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.work, self.device = work, device
        self.until = time.monotonic() + seconds
        self.findings, self.log = out / "gpu_check.jsonl", out / "gpu_check.log"
        self.findings.write_text("")
        self.log.write_text("")
        self.jobs: dict[str, Job] = {}

    def left(self) -> float:
        """Seconds that are left for everything."""
        return self.until - time.monotonic()

    def start(self, name: str) -> None:
        """Start the process of a section, which imports what it needs and waits for `go`."""
        command = [sys.executable, "-m", "benchmarks.gpu.process", name, self.device]
        own = {"PYTHONUNBUFFERED": "1", "TORCHINDUCTOR_CACHE_DIR": str(self.work / "inductor")}
        if self.device == "cpu":
            own["CUDA_VISIBLE_DEVICES"] = ""
        with (self.work / f"{name}.log").open("w") as output:
            process = subprocess.Popen(
                [*command, str(self.work), str(self.findings.resolve())],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=ROOT,
                env=os.environ | own,
            )
        self.jobs[name] = Job(process)

    def go(self, name: str) -> None:
        """Let a section work, for as long as its limit and the whole allow."""
        job = self.jobs[name]
        limit = SECTIONS[name].limit * (1 if self.device == "cuda" else CPU_FACTOR)
        limit = max(10, min(limit, int(self.left()) - 3))
        job.begin = time.monotonic()
        job.until = job.begin + limit + 2
        assert job.process.stdin is not None
        with contextlib.suppress(OSError):
            job.process.stdin.write(f"{limit}\n".encode())
            job.process.stdin.flush()

    def end(self, name: str, status: str) -> None:
        """Stop what is left of a section, and report what it found."""
        job = self.jobs.pop(name)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(job.process.pid, signal.SIGKILL)  # its own session, started above
        job.process.wait()
        text = (self.work / f"{name}.log").read_text(errors="replace")[-LOG_LENGTH:]
        with self.log.open("a") as log:
            log.write(f"===== {name}: {status}\n{text}\n")

        found: dict[str, Any] = {}
        for line in self.findings.read_text().splitlines():
            finding = json.loads(line)
            if finding["section"] == name:
                found |= finding
        seconds = time.monotonic() - job.begin if job.begin else 0.0
        print(json.dumps(found | self.report(name, status, seconds)), flush=True)
        if name == "data" and status != "ok":
            (self.work / "data.failed").touch()  # who waits for the images need not go on waiting

    def report(self, name: str, status: str, seconds: float = 0.0) -> dict[str, Any]:
        """Write how a section ended, and return it."""
        line = {"section": name, "status": status, "seconds": round(seconds, 1)}
        with self.findings.open("a") as file:
            file.write(json.dumps(line) + "\n")
        return line

    def poll(self) -> None:
        """Report the sections that ended or have no time left; wait a moment."""
        for name, job in list(self.jobs.items()):
            status = job.process.poll()
            if status is not None:
                self.end(name, "ok" if status == 0 else f"exit {status}")
            elif min(job.until, self.until) < time.monotonic():
                self.end(name, "out of time")
        time.sleep(0.1)

    def run_together(self, names: Iterable[str], most: int, seconds: float) -> None:
        """Run sections side by side, at most so many at once, for so many seconds."""
        queue, until = list(names), time.monotonic() + seconds
        while (queue or self.jobs) and time.monotonic() < min(until, self.until):
            while queue and len(self.jobs) < most:
                self.start(queue[0])
                self.go(queue.pop(0))
            self.poll()

        for name in list(self.jobs):
            self.end(name, "out of time")
        for name in queue:
            print(json.dumps(self.report(name, "not started")))

    def run_alone(self, names: Sequence[str]) -> None:
        """Run sections one after the other; the next one imports what it needs meanwhile."""
        for name, following in zip(names, [*names[1:], None], strict=True):
            if self.left() < 12:
                print(json.dumps(self.report(name, "not started")))
                continue
            if name not in self.jobs:
                self.start(name)
            self.go(name)
            if following:
                self.start(following)
            while name in self.jobs:
                self.poll()
        for name in list(self.jobs):
            self.end(name, "not started")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the sections that are asked for, or list them."""
    with user_errors():
        flags = parse_flags(__doc__, FLAGS, argv)
        if flags.list:
            for name, entry in SECTIONS.items():
                print(f"{name:12} {entry.limit:4} s  {entry.does}")
            return

        chosen = [name for name in SECTIONS if name in flags.only]
        if "data" not in chosen and any(SECTIONS[name].needs_images for name in chosen):
            chosen.insert(0, "data")
        alone = [name for name in chosen if SECTIONS[name].is_alone]
        is_cuda = flags.device == "cuda"
        seconds = flags.seconds * (1 if is_cuda else CPU_FACTOR)
        begin = time.monotonic()
        work = Path(tempfile.mkdtemp(prefix="gpu_check_"))
        runner = Runner(Path(flags.out), work, flags.device, seconds)
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))

        try:
            together = TOGETHER_SECONDS if is_cuda and alone else seconds
            most = flags.jobs or (8 if is_cuda else 2)
            runner.run_together([name for name in chosen if name not in alone], most, together)
            runner.run_alone(alone)
        finally:
            for name in list(runner.jobs):
                runner.end(name, "stopped")
            shutil.rmtree(work, ignore_errors=True)
        print(json.dumps(runner.report("all", "ok", time.monotonic() - begin)))


if __name__ == "__main__":
    main()
