"""Images per second: of training steps and of embedding, beside the bare network."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.runs import Stepper, photo_words
from benchmarks.gpu.section import Section
from benchmarks.speed.train_methods import Work, train_bare
from metric_learning.engine.embed.embedding import embed_images
from metric_learning.engine.options.parts import MachineOptions
from metric_learning.engine.parallel.devices import place
from metric_learning.engine.parallel.world import World
from metric_learning.engine.train.step import Step
from metric_learning.losses import emlloss
from metric_learning.models import build_model
from metric_learning.reader import load_image_set
from metric_learning.reader.preprocessing import Preprocessing

NUM_PROFILED = 4  # steps
BARE, CACHED, FREE = "bare", "this", "this, without waits for the device"
BFLOAT16 = "--amp=bfloat16"


def train_speed(section: Section) -> None:
    """Measure the bare step and the project's, and what costs the difference."""
    section.images()
    cached = [f"--cache={section.own / 'cache'}", BFLOAT16]
    runs: list[tuple[str, list[str]]] = [
        (BARE, [BFLOAT16]),
        (CACHED, cached),
        (FREE, cached),
        ("this from JPEG", [BFLOAT16]),
        ("this from JPEG, 2 workers", [BFLOAT16, "--num_workers=2"]),
        ("this, augment_on=device", [BFLOAT16, "--augment_on=device"]),
        ("bare, float32 (TF32 convolutions)", ["--amp=off"]),
    ]
    if section.is_cuda:
        runs += [
            ("this, decode_on=device", [BFLOAT16, "--decode_on=device"]),
            ("bare, cudnn.benchmark", [BFLOAT16]),
            ("this, with_mem_opt", [*cached, "--with_mem_opt=True"]),
            ("bare, compiled", [BFLOAT16, "--compile=True"]),
            ("this, compiled", [*cached, "--compile=True"]),
        ]

    for name, words in runs:
        torch.backends.cudnn.benchmark = "benchmark" in name
        measure = measure_bare if name.startswith(BARE) else measure_this
        with without_waits() if name == FREE else nullcontext():
            section.attempt(name, measure, section, *words)
        if name == CACHED:
            section.attempt("profile", profiled, section, *words)


def sizes(section: Section) -> tuple[int, int, int]:
    """Return images of a batch, steps that are measured, and steps before them."""
    return section.size((256, 20, 5), (16, 2, 1))


def measure_bare(section: Section, *words: str) -> dict[str, float]:
    """Measure network, loss and optimizer alone."""
    section.fresh_memory()
    batch, steps, warm_up = sizes(section)
    name, image_size = section.size(("ResNet50", 224), ("test_resnet", 32))
    total, folder, device = steps + warm_up + 1, str(section.images()), str(section.device)
    work = Work(name, image_size, batch, 4, total, section.workers, folder, device)
    stamps: list[float] = []

    def stamp() -> None:
        if len(stamps) in (warm_up, total - 1):
            section.sync()
        stamps.append(time.perf_counter())

    train_bare(work, stamp, *words)
    seconds = (stamps[-1] - stamps[warm_up]) / steps
    return {"images/s": batch / seconds, "ms": 1e3 * seconds, **section.memory()}


def measure_this(section: Section, *words: str) -> dict[str, float]:
    """Measure steps of the project, and how long they wait for images."""
    section.fresh_memory()
    batch, steps, warm_up = sizes(section)
    stepper = make_stepper(section, *words)
    section.seconds_of(stepper, warm_up)
    stepper.waited = 0.0
    seconds = section.seconds_of(stepper, steps)
    row = {"images/s": batch / seconds, "ms": 1e3 * seconds, **section.memory()}
    return row | {"ms waiting for images": 1e3 * stepper.waited / steps}


def make_stepper(section: Section, *words: str) -> Stepper:
    """Start a training of some steps more than are measured."""
    batch, steps, warm_up = sizes(section)
    total = f"--total_iter_num={steps + warm_up + 8}"
    return Stepper(2, photo_words(section, batch, total, *words))


def profiled(section: Section, *words: str) -> dict[str, float]:
    """Say how busy the GPU is, and how a checkpoint is written."""
    stepper = make_stepper(section, *words)
    section.seconds_of(stepper, 3)
    activities = [ProfilerActivity.CPU, *section.size([ProfilerActivity.CUDA], [])]
    with profile(activities=activities) as found:
        wall = NUM_PROFILED * section.seconds_of(stepper, NUM_PROFILED)

    events = found.events()
    kernels = [event for event in events if str(event.device_type).endswith("CUDA")]
    busy = sum(event.time_range.elapsed_us() for event in kernels) / 1e6
    calls = Counter(event.name for event in events)
    file, begin = section.own / "checkpoint.pt", time.perf_counter()
    torch.save(stepper.run.checkpoint(), file)
    return {
        "GPU busy": busy / wall,
        "kernels per step": len(kernels) / NUM_PROFILED,
        "waits per step": calls["cudaStreamSynchronize"] / NUM_PROFILED,
        "copies per step": calls["cudaMemcpyAsync"] / NUM_PROFILED,
        "seconds of a checkpoint": time.perf_counter() - begin,
        "MiB of a checkpoint": file.stat().st_size / 2**20,
    }


@contextmanager
def without_waits() -> Iterator[None]:
    """Leave out the checks of labels, and step whether or not the gradients are finite."""

    def apply_gradients(self: Step, loss: torch.Tensor, step: int) -> bool:
        self.gradient_norm(loss)
        self.learner.scaler.step(self.learner.optimizer)
        return True

    unchecked = patch.object(emlloss, "check_blocks", lambda labels, k: None)
    with unchecked, patch.object(Step, "apply_gradients", apply_gradients):
        yield


def extraction(section: Section) -> None:
    """Embed JPEG files as tests, eval.py and infer.py do; then the network alone."""
    name, size = section.size(("ResNet50", 224), ("test_resnet", 32))
    model = build_model(name, image_size=size).eval()
    place(model, section.device)
    listed = str(section.images() / "train.txt")
    image_set = load_image_set("list", None, "test", test_list=listed)

    ways = [(batch, torch.float32) for batch in section.size((10, 50, 256), (10,))]
    for batch, dtype in [*ways, (256, torch.bfloat16)]:
        amp = None if dtype is torch.float32 else dtype
        machine = MachineOptions(World(), section.device, amp, 0, section.workers)
        for transform in ("standard", "reference") if batch == 256 else ("standard",):
            sight = Preprocessing(transform, size, model.mean, model.std)
            embed = partial(embed_images, model, image_set, sight, machine, batch)
            title = f"{transform}, batch {batch}, {dtype}"
            section.attempt(title, rate_of, section, embed, len(image_set), 1)
        alone = partial(forward, model, section.device, batch, size, amp)
        section.attempt(f"network alone, batch {batch}, {dtype}", rate_of, section, alone, batch, 3)


def rate_of(section: Section, call: Any, count: int, times: int) -> dict[str, float]:
    """Return the images per second of a call that takes so many, warmed up if it is repeated."""
    return {"images/s": count / section.seconds_of(call, times, warm_up=times - 1)}


@torch.inference_mode()
def forward(
    model: Any, device: torch.device, batch: int, size: int, dtype: torch.dtype | None
) -> torch.Tensor:
    """Return the embeddings (B, D) of black images that lie on the device."""
    images = torch.zeros(batch, 3, size, size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        return model(images)
