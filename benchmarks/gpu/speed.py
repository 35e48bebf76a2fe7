"""Images per second: of training steps, of embedding, and of exact ranks."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.section import Section
from benchmarks.gpu.training import Stepper, photo_words
from benchmarks.speed.retrieval import make_embeddings
from benchmarks.speed.train import Work, train_bare
from metric_learning.engine.embed.embedding import embed_images
from metric_learning.engine.options.parts import MachineOptions
from metric_learning.engine.parallel.devices import place
from metric_learning.engine.parallel.world import World
from metric_learning.models import build_model
from metric_learning.reader import load_image_set
from metric_learning.reader.preprocessing import Preprocessing
from metric_learning.retrieval import evaluate
from metric_learning.retrieval.search import nearest
from metric_learning.retrieval.verification import verification_scores

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
    "bare, no cudnn.benchmark": [],
    "this, with_mem_opt": ["--cache", "--with_mem_opt=True"],
    "bare, compiled": ["--compile=True"],
    "this, compiled": ["--cache", "--compile=True"],
}
PER_IMAGE = ("labels", "is_query", "is_gallery")  # arrays of an image set


def train_speed(section: Section) -> None:
    """Measure the bare step and the project's, in several ways."""
    for name, flags in {**STEPS, **section.size(GPU_STEPS, {})}.items():
        torch.backends.cudnn.benchmark = "no cudnn.benchmark" not in name  # as trainings set it
        cache = {"--cache": f"--cache={section.own / 'cache'}"}
        words = ["--amp=bfloat16", *(cache.get(flag, flag) for flag in flags)]
        measure = measure_bare if name.startswith("bare") else measure_this
        section.attempt(name, measure, section, *words)


def sizes(section: Section) -> tuple[int, int, int]:
    """Return images of a batch, steps that are measured, and steps before them.

    These are for kernels to be chosen and compiled, and for memory to be pinned for all batches
    that wait.
    """
    return section.size((256, 20, 30), (16, 2, 1))


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


def measure_this(section: Section, *words: str) -> dict[str, float]:
    """Measure steps of the project, and how long they wait for images."""
    batch, steps, warm_up = sizes(section)
    total = f"--total_iter_num={steps + warm_up}"
    stepper = Stepper(2, photo_words(section, batch, total, *words))
    section.seconds_of(stepper, warm_up)
    stepper.waited = 0.0
    row = section.rate_of(stepper, batch, steps)
    return row | {"ms waiting for images": 1e3 * stepper.waited / steps}


def extraction(section: Section) -> None:
    """Embed JPEG files as tests, eval.py and infer.py do; then the network alone."""
    name, size = section.size(("ResNet50", 224), ("test_resnet", 32))
    model = build_model(name, image_size=size).eval()
    place(model, section.device)
    listed = str(section.images / "train.txt")
    once = load_image_set("list", None, "test", test_list=listed)
    times = section.size(8, 1)  # enough to hide the start of the workers
    arrays: dict[str, Any] = {name: np.tile(getattr(once, name), times) for name in PER_IMAGE}
    image_set = replace(once, paths=times * list(once.paths), **arrays)

    for batch, amp in ((10, None), (64, None), (256, None), (256, torch.bfloat16)):
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


def retrieval(section: Section) -> None:
    """Rank on the device and on the CPU; verify and search."""
    torch.set_num_threads(max(1, (os.cpu_count() or 2) - 1))
    device, count = section.device, section.size(60502, 800)
    for where in ("cpu", device):
        evaluate(*make_embeddings(400, 16), device=where)  # compiles, and loads kernels
    for dim in section.size((2048, 512), (32,)):
        data = make_embeddings(count, dim)
        section.attempt(f"{count} x {dim}", compare, section, *data)
    section.attempt("large classes", compare, section, *large_classes(section))

    rows = np.arange(count)
    units = torch.from_numpy(data[0]).to(device)
    calls = {
        "products alone": lambda: [torch.mm(part, units.T) for part in units.split(2048)][-1],
        "verification": partial(verification_scores, *data, device=device),
        "nearest 1000": partial(nearest, data[0], data[0], min(1000, count - 1), rows, device),
    }
    for name, call in calls.items():
        section.attempt(f"{name}, seconds", section.seconds_of, call, 1)


def compare(section: Section, embeddings: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Return the rate of rankings, the seconds of one on the CPU, and the digits that differ."""
    here: dict[str, float] = {}
    there: dict[str, float] = {}
    rank, count = partial(evaluate, embeddings, labels), len(labels)
    rate = section.rate_of(lambda: here.update(rank(device=section.device)), count, 1, warm_up=1)
    row = {**rate, "recall@1": here["recall@1"], "map@r": here["map@r"]}
    section.note(**{f"{count} x {embeddings.shape[1]}": row})  # the CPU may take too long

    seconds = section.seconds_of(lambda: there.update(rank(device="cpu")), 1)
    differs = {key: [here[key], there[key]] for key in there if here[key] != there[key]}
    return {**row, "CPU seconds": seconds, "differs": differs}


def large_classes(section: Section) -> tuple[np.ndarray, np.ndarray]:
    """Draw embeddings of classes in which each image has many positives."""
    count, num_classes = section.size((10000, 10), (400, 4))
    rng = np.random.default_rng(0)
    labels = rng.integers(0, num_classes, count)
    centres = rng.standard_normal((num_classes, 128), np.float32)
    return rng.standard_normal((count, 128), np.float32) + centres[labels], labels
