"""Images per second: of training steps and of embedding, beside the bare network."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
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

BFLOAT16 = "--amp=bfloat16"
COMPILE = "--compile=True"


def train_speed(section: Section) -> None:
    """Measure the bare step and the project's, and what costs the difference."""
    images = section.images()
    cache = f"--cache={section.own / 'cache'}"
    few = f"--num_workers={section.size(2, 0)}"

    def bare(name: str, *more: str) -> None:
        section.attempt(name, partial(measure_bare, section, images, *more), needs=6)

    def project(name: str, *more: str) -> None:
        section.attempt(name, partial(measure_project, section, images, *more), needs=10)

    bare("bare bf16", BFLOAT16)
    project("cache bf16", cache, BFLOAT16)
    section.attempt("profile", lambda: profiled(section, images, cache, BFLOAT16), needs=10)
    with without_waits():
        project("cache bf16, without waits for the device", cache, BFLOAT16)
    project("JPEG bf16", BFLOAT16)
    project("JPEG bf16, the default of workers", BFLOAT16, few)
    project("augment_on=device bf16", BFLOAT16, "--augment_on=device")
    bare("bare float32 (TF32 convolutions)", "--amp=off")
    if section.is_cuda:
        project("decode_on=device bf16", BFLOAT16, "--decode_on=device")
        with torch.backends.cudnn.flags(benchmark=True, allow_tf32=True):
            bare("bare bf16, cudnn.benchmark", BFLOAT16)
        project("cache bf16, with_mem_opt", cache, BFLOAT16, "--with_mem_opt=True")
        bare("bare bf16 compiled", BFLOAT16, COMPILE)
        project("cache bf16 compiled", cache, BFLOAT16, COMPILE)


def sizes(section: Section) -> tuple[int, int, int]:
    """Return images of a batch, steps that are measured, and steps before them."""
    return section.size((256, 20, 5), (16, 2, 1))


def measure_bare(section: Section, images: Path, *more: str) -> dict[str, float]:
    """Measure network, loss and optimizer alone."""
    section.fresh_memory()
    batch, steps, warm_up = sizes(section)
    work = Work(
        model=section.size("ResNet50", "test_resnet"),
        image_size=section.size(224, 32),
        batch_size=batch,
        samples_each_class=4,
        num_steps=steps + warm_up + 1,
        num_workers=section.workers,
        folder=str(images),
        device=str(section.device),
    )
    stamps: list[float] = []

    def stamp() -> None:
        if len(stamps) in (warm_up, work.num_steps - 1):
            section.sync()
        stamps.append(time.perf_counter())

    train_bare(work, stamp, *more)
    seconds = (stamps[-1] - stamps[warm_up]) / steps
    return {"images/s": batch / seconds, "ms": 1e3 * seconds, **section.memory()}


def measure_project(section: Section, images: Path, *more: str) -> dict[str, float]:
    """Measure steps of the project, and how long they wait for images."""
    section.fresh_memory()
    batch, steps, warm_up = sizes(section)
    stepper = make_stepper(section, images, *more)
    section.seconds_of(stepper, warm_up, warm_up=0)
    stepper.waited = 0.0
    seconds = section.seconds_of(stepper, steps, warm_up=0)
    waited = {"ms waiting for images": 1e3 * stepper.waited / steps}
    return {"images/s": batch / seconds, "ms": 1e3 * seconds, **waited, **section.memory()}


def make_stepper(section: Section, images: Path, *more: str) -> Stepper:
    """Start a training of some steps more than are measured."""
    batch, steps, warm_up = sizes(section)
    total = f"--total_iter_num={steps + warm_up + 8}"
    return Stepper(2, photo_words(section, images, batch, total, *more))


def profiled(section: Section, images: Path, *more: str) -> dict[str, float]:
    """Say how busy the GPU is, and how a checkpoint is written."""
    stepper, steps = make_stepper(section, images, *more), 4
    section.seconds_of(stepper, 1, warm_up=2)
    activities = [ProfilerActivity.CPU, *section.size([ProfilerActivity.CUDA], [])]
    with profile(activities=activities) as found:
        wall = steps * section.seconds_of(stepper, steps, warm_up=0)

    events = found.events()
    kernels = [event for event in events if str(event.device_type).endswith("CUDA")]
    busy = sum(event.time_range.elapsed_us() for event in kernels) / 1e6
    calls = Counter(event.name for event in events)
    file, begin = section.own / "checkpoint.pt", time.perf_counter()
    torch.save(stepper.run.checkpoint(), file)
    return {
        "GPU busy": busy / wall,
        "kernels per step": len(kernels) / steps,
        "waits per step": calls["cudaStreamSynchronize"] / steps,
        "copies per step": calls["cudaMemcpyAsync"] / steps,
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

    with ExitStack() as stack:
        stack.enter_context(patch.object(Step, "apply_gradients", apply_gradients))
        if hasattr(emlloss, "check_blocks"):
            stack.enter_context(patch.object(emlloss, "check_blocks", lambda labels, k: None))
        yield


def extraction(section: Section) -> None:
    """Embed JPEG files as tests, eval.py and infer.py do; then the network alone."""
    images = section.images()
    size = section.size(224, 32)
    model = build_model(section.size("ResNet50", "test_resnet"), image_size=size).eval()
    place(model, section.device)
    image_set = load_image_set("list", None, "test", test_list=str(images / "train.txt"))
    ways: list[tuple[str, int, torch.dtype | None]] = [
        *(("standard", batch, None) for batch in section.size((10, 50, 256), (10,))),
        ("standard", 256, torch.bfloat16),
        *(("reference", 256, dtype) for dtype in (None, torch.bfloat16)),
    ]
    for transform, batch, dtype in ways:
        machine = MachineOptions(World(), section.device, dtype, 0, section.workers)
        preprocessing = Preprocessing(transform, size, model.mean, model.std)
        rows: Any = {"preprocessing": preprocessing, "machine": machine, "batch_size": batch}
        embed = partial(embed_images, model, image_set, **rows)

        def rate(embed: Any = embed) -> float:
            return len(image_set) / section.seconds_of(embed, 1, warm_up=0)

        section.attempt(f"images/s, {transform}, batch {batch}, {dtype}", rate, needs=5)
    for batch, dtype in {(batch, dtype) for transform, batch, dtype in ways}:
        inputs = torch.randn(batch, 3, size, size, device=section.device)
        inputs = inputs.contiguous(memory_format=torch.channels_last)

        @torch.inference_mode()
        def forward(inputs: torch.Tensor = inputs, dtype: torch.dtype | None = dtype) -> Any:
            with torch.autocast(section.device.type, dtype=dtype, enabled=dtype is not None):
                return model(inputs)

        times = section.size(10, 1)
        measure = lambda f=forward, b=batch: b / section.seconds_of(f, times)  # noqa: E731
        section.attempt(f"images/s, network alone, batch {batch}, {dtype}", measure, needs=3)
