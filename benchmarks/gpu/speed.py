"""Images per second: of training steps and of embedding, beside the bare network."""

from __future__ import annotations

import time
from collections import Counter
from functools import partial
from typing import Any

import torch
from torch.profiler import profile

from benchmarks.gpu.runs import Stepper, photo_words
from benchmarks.gpu.section import Section
from benchmarks.speed.train import Work, train_bare
from metric_learning.engine.embed.embedding import embed_images
from metric_learning.engine.options.parts import MachineOptions
from metric_learning.engine.parallel.devices import place
from metric_learning.engine.parallel.world import World
from metric_learning.models import build_model
from metric_learning.reader import load_image_set
from metric_learning.reader.preprocessing import Preprocessing

NUM_PROFILED = 4  # steps
STEPS = {  # what is measured -> flags beside bfloat16
    "bare": [],
    "this": ["--cache"],
    "this from JPEG": [],
    "this from JPEG, 2 workers": ["--num_workers=2"],
    "this, augment_on=device": ["--augment_on=device"],
    "bare, float32 (TF32 convolutions)": ["--amp=off"],
}
GPU_STEPS = {
    "this, decode_on=device": ["--decode_on=device"],
    "bare, cudnn.benchmark": [],
    "this, with_mem_opt": ["--cache", "--with_mem_opt=True"],
    "bare, compiled": ["--compile=True"],
    "this, compiled": ["--cache", "--compile=True"],
}


def train_speed(section: Section) -> None:
    """Measure the bare step and the project's, and what costs the difference."""
    for name, flags in {**STEPS, **section.size(GPU_STEPS, {})}.items():
        torch.backends.cudnn.benchmark = "benchmark" in name
        cache = {"--cache": f"--cache={section.own / 'cache'}"}
        words = ["--amp=bfloat16", *(cache.get(flag, flag) for flag in flags)]
        measure = measure_bare if name.startswith("bare") else measure_this
        section.attempt(name, measure, section, *words)
        if name == "this":
            section.attempt("profile", profiled, section, *words)


def sizes(section: Section) -> tuple[int, int, int]:
    """Return images of a batch, steps that are measured, and steps before them."""
    return section.size((256, 20, 5), (16, 2, 1))


def measure_bare(section: Section, *words: str) -> dict[str, float]:
    """Measure network, loss and optimizer alone."""
    batch, steps, warm_up = sizes(section)
    name, image_size = section.size(("ResNet50", 224), ("test_resnet", 32))
    total, folder, device = steps + warm_up + 1, str(section.images), str(section.device)
    stamps: list[float] = []

    def stamp() -> None:
        if len(stamps) in (warm_up, total - 1):
            section.sync()
        stamps.append(time.perf_counter())

    train_bare(Work(name, image_size, batch, 4, total, 0, folder, device), stamp, *words)
    seconds = (stamps[-1] - stamps[warm_up]) / steps
    return {"images/s": batch / seconds, "ms": 1e3 * seconds}


def make_stepper(section: Section, *words: str) -> Stepper:
    """Start a training of more steps than are measured, and make those before them."""
    batch, steps, warm_up = sizes(section)
    total = f"--total_iter_num={steps + warm_up + 8}"
    stepper = Stepper(2, photo_words(section, batch, total, *words))
    section.seconds_of(stepper, warm_up)
    stepper.waited = 0.0
    return stepper


def measure_this(section: Section, *words: str) -> dict[str, float]:
    """Measure steps of the project, and how long they wait for images."""
    batch, steps, _ = sizes(section)
    stepper = make_stepper(section, *words)
    row = section.rate_of(stepper, batch, steps)
    return row | {"ms waiting for images": 1e3 * stepper.waited / steps}


def profiled(section: Section, *words: str) -> dict[str, float]:
    """Say how busy the GPU is in a step of the project."""
    stepper = make_stepper(section, *words)
    with profile() as found:
        wall = NUM_PROFILED * section.seconds_of(stepper, NUM_PROFILED)

    events = found.events()
    kernels = [event for event in events if str(event.device_type).endswith("CUDA")]
    calls = Counter(event.name for event in events)
    return {
        "GPU busy": sum(event.time_range.elapsed_us() for event in kernels) / 1e6 / wall,
        "kernels per step": len(kernels) / NUM_PROFILED,
        "waits per step": calls["cudaStreamSynchronize"] / NUM_PROFILED,
        "copies per step": calls["cudaMemcpyAsync"] / NUM_PROFILED,
    }


def extraction(section: Section) -> None:
    """Embed JPEG files as tests, eval.py and infer.py do; then the network alone."""
    name, size = section.size(("ResNet50", 224), ("test_resnet", 32))
    model = build_model(name, image_size=size).eval()
    place(model, section.device)
    listed = str(section.images / "train.txt")
    image_set = load_image_set("list", None, "test", test_list=listed)

    for batch, amp in ((10, None), (50, None), (256, None), (256, torch.bfloat16)):
        machine = MachineOptions(World(), section.device, amp, 0, section.workers)
        for transform in ("standard", "reference"):
            sight = Preprocessing(transform, size, model.mean, model.std)
            embed = partial(embed_images, model, image_set, sight, machine, batch)
            title = f"{transform}, batch {batch}, {amp}"
            section.attempt(title, section.rate_of, embed, len(image_set), 1)
        alone = partial(forward, model, section.device, batch, size, amp)
        section.attempt(f"network alone, batch {batch}, {amp}", section.rate_of, alone, batch, 3, 2)


@torch.inference_mode()
def forward(
    model: Any, device: torch.device, batch: int, size: int, dtype: torch.dtype | None
) -> torch.Tensor:
    """Return the embeddings (B, D) of black images that lie on the device."""
    images = torch.zeros(batch, 3, size, size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        return model(images)
