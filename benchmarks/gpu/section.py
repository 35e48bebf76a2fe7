"""What a section of the check works with, and how it says what it found."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

T = TypeVar("T")
SPARE_SECONDS = 4  # before the limit, to write what was found


class Section:
    """A section: where it computes and writes, in folder `work` for all and `own` for itself.

    At most so many `sharers`, this one among them, run at the same time.
    """

    def __init__(
        self, name: str, device: str, work: Path, findings: Path, sharers: int, limit: int
    ) -> None:
        self.name, self.device, self.work = name, torch.device(device), work
        self.is_cuda, self.own, self.images = device == "cuda", work / name, work / "images"
        self.own.mkdir(parents=True, exist_ok=True)
        self.until = time.monotonic() + limit - SPARE_SECONDS
        cores = os.cpu_count() or 1
        self.workers, self.threads = self.size(max(1, min(14, cores - 2)), 1), cores // sharers or 1
        self._file = findings.open("a", buffering=1)

    def size(self, on_gpu: T, on_cpu: T) -> T:
        """Return the size that is for this device."""
        return on_gpu if self.is_cuda else on_cpu

    def note(self, **found: Any) -> None:
        """Write what was found, whatever comes next."""
        self._file.write(json.dumps({"section": self.name, **found}, default=str) + "\n")

    def attempt(self, name: str, step: Callable[..., Any], *arguments: Any) -> Any:
        """Make a step and note what it returns; its error is noted too, and the section goes on."""
        if time.monotonic() > self.until:
            self.note(**{name: "skipped: no time is left"})
            return None
        found = None
        try:
            found = step(*arguments)
            self.note(**{name: "done" if found is None else found})
        except (Exception, SystemExit) as error:
            self.note(**{name: {"error": described(error)}})
            traceback.print_exc()
        return found

    def sync(self) -> None:
        """Wait for the device."""
        if self.is_cuda:
            torch.cuda.synchronize()

    def seconds_of(self, call: Callable[[], Any], times: int, warm_up: int = 0) -> float:
        """Return the wall seconds per call, the device waited for."""
        for _ in range(warm_up):
            call()
        self.sync()
        begin = time.perf_counter()
        for _ in range(times):
            call()
        self.sync()
        return (time.perf_counter() - begin) / times

    def rate_of(
        self, call: Callable[[], Any], count: int, times: int, warm_up: int = 0
    ) -> dict[str, float]:
        """Measure a call that takes so many images: their rate, and the device's peak of memory."""
        if self.is_cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        seconds = self.seconds_of(call, times, warm_up)
        peak = {"GiB": torch.cuda.max_memory_allocated() / 2**30} if self.is_cuda else {}
        return {"images/s": count / seconds, "ms": 1e3 * seconds, **peak}


def run_section(function: Callable[[Section], None], name: str, *more: Any) -> None:
    """Run what a section does in this process, which prints to a file of its own from now on."""
    section = Section(name, *more)
    os.setsid()
    signal.alarm(more[-1])  # the limit, which ends this process
    log = os.open(section.work / f"{name}.log", os.O_WRONLY | os.O_CREAT)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(log, stream.fileno())
    torch.set_num_threads(section.threads)
    try:
        function(section)
    except Exception as error:
        section.note(error=described(error))
        raise
    finally:
        sys.stdout.flush()


def described(error: BaseException) -> str:
    """Return an error in one line; where it came from is in the log."""
    return f"{type(error).__name__}: {str(error).strip()[:300]}"


def relative(found: Any, expected: Any) -> float:
    """Return |found - expected| / |expected| of tensors or numbers."""
    a, b = (torch.as_tensor(value).detach().double().cpu() for value in (found, expected))
    return float((a - b).norm() / b.norm().clamp_min(1e-12))
