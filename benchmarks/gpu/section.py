"""What a section of the check works with, and how it says what it found."""

from __future__ import annotations

import json
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch

T = TypeVar("T")
SPARE_SECONDS = 4  # before the limit, to write what was found


class Section:
    """A section: where it computes and writes, in folder `work` for all and `own` for itself."""

    def __init__(self, name: str, device: str, work: Path, findings: Path, limit: float) -> None:
        self.name, self.device, self.work = name, torch.device(device), work
        self.is_cuda, self.own = device == "cuda", work / name
        self.own.mkdir(parents=True, exist_ok=True)
        self.until = time.monotonic() + limit - SPARE_SECONDS
        self.workers = self.size(max(1, min(14, (os.cpu_count() or 1) - 2)), 1)
        self._file = findings.open("a", buffering=1)

    def size(self, on_gpu: T, on_cpu: T) -> T:
        """Return the size that is for this device."""
        return on_gpu if self.is_cuda else on_cpu

    def left(self) -> float:
        """Seconds that are left."""
        return self.until - time.monotonic()

    def note(self, **found: Any) -> None:
        """Write what was found, whatever comes next."""
        self._file.write(json.dumps({"section": self.name, **rounded(found)}) + "\n")

    def attempt(self, name: str, step: Callable[..., T], *arguments: Any) -> T | None:
        """Make a step and note what it returns; its error is noted too, and the section goes on."""
        begin, found = time.monotonic(), None
        if self.left() < 0:
            self.note(**{name: "skipped: no time is left"})
            return None
        try:
            found = step(*arguments)
            self.note(**{name: "done" if found is None else found})
        except (Exception, SystemExit) as error:
            self.note(**{name: {"error": described(error)}})
            traceback.print_exc()
        print(f"[{self.name}] {name}: {time.monotonic() - begin:.1f} s", flush=True)
        return found

    def sync(self) -> None:
        """Wait for the device."""
        if self.is_cuda:
            torch.cuda.synchronize()

    def fresh_memory(self) -> None:
        """Give freed memory back, and count its peak anew."""
        if self.is_cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def memory(self) -> dict[str, float]:
        """Return the peak of the device's memory; nothing on a CPU."""
        return {"GiB": torch.cuda.max_memory_allocated() / 2**30} if self.is_cuda else {}

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

    def images(self) -> Path:
        """Return the folder of the images that the section `data` draws, when they are there."""
        while not (self.work / "data.done").exists():
            if self.left() < 0 or (self.work / "data.failed").exists():
                raise TimeoutError("the section `data` has not drawn the images")
            time.sleep(0.2)
        return self.work / "images"


def run_section(function: Callable[[Section], None], *of_section: Any) -> None:
    """Run what a section does in this process, which prints to a file of its own from now on."""
    os.setsid()
    section = Section(*of_section)
    log = os.open(section.work / f"{section.name}.log", os.O_WRONLY | os.O_CREAT)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(log, stream.fileno())
    try:
        function(section)
    except Exception as error:
        section.note(error=described(error))
        raise
    finally:
        sys.stdout.flush()


@contextmanager
def convolutions_in(precision: str) -> Iterator[None]:
    """Let cuDNN convolve float32 images in another precision: ieee or tf32."""
    switch: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = switch.fp32_precision
    switch.fp32_precision = precision
    try:
        yield
    finally:
        switch.fp32_precision = before


def rounded(value: Any) -> Any:
    """Make a value fit for JSON, its numbers short."""
    if isinstance(value, dict):
        return {str(key): rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [rounded(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else str(value)
    return value if value is None or isinstance(value, bool | int) else str(value)


def described(error: BaseException) -> str:
    """Return an error in one line, with the line of the project that it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "site-packages" not in frame.filename]
    where = f" at {Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""
    return f"{type(error).__name__}: {str(error).strip()[:300]}{where}"


def relative(found: Any, expected: Any) -> float:
    """Return |found - expected| / |expected| of tensors or numbers."""
    pair = [torch.as_tensor(v).detach().double().cpu().flatten() for v in (found, expected)]
    return float((pair[0] - pair[1]).norm() / pair[1].norm().clamp_min(1e-12))
