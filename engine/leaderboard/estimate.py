"""What the trainings of a board will take: time on this machine, computation, and memory."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from metric_learning.engine.embed.network import build_network
from metric_learning.engine.leaderboard.trainings.tasks import Task
from metric_learning.engine.leaderboard.trainings.work import check_words
from metric_learning.engine.options.parts import ModelOptions
from metric_learning.engine.options.training import default_transform
from metric_learning.engine.parallel.devices import choose_device
from metric_learning.engine.parallel.world import World
from metric_learning.engine.train.needs import STATES, activation_bytes
from metric_learning.engine.train.optimizers import OPTIMIZERS
from metric_learning.models import MODEL_OPTIONS, image_size_of

TRIED = {"cpu": 8, "cuda": 32}  # images of the step that is timed, on the CPU by one thread
HEAD_START, HEAD_RATE = 0.5, 45_000.0  # seconds and images a second of a head on kept features
BACKWARD = 2.0  # times the computation of the forward pass
GPU_STEP = 0.02  # seconds that a step takes there at least, however small the network
GPU_FLOPS = 100e12  # a second, that a GPU of 2020 or later sustains in bfloat16 in convolutions


@dataclass(frozen=True)
class ImageCost:
    """What an image costs in a network.

    Attributes:
        seconds: of a step on this machine, per image.
        flops: of the forward pass; a multiplication and an addition are two.
        activation: bytes that it takes in a step.
        weights: number of weights.
    """

    seconds: float
    flops: float
    activation: float
    weights: int


@dataclass(frozen=True)
class Estimate:
    """What a training takes: seconds of a core or GPU here, and of a GPU of GPU_FLOPS; bytes."""

    seconds: float
    gpu_seconds: float
    memory: float

    def __str__(self) -> str:
        where = "here" if torch.cuda.is_available() else "of a core"
        seconds, gpu_seconds = map(minutes_text, (self.seconds, self.gpu_seconds))
        return f"about {seconds} {where}, {gpu_seconds} on a GPU, {self.memory / 2**30:.1f} GiB"


def estimate(task: Task, num_images: Mapping[str, int], folds: int) -> Estimate | None:
    """Estimate what a training will take; None where its length in images is not known.

    Args:
        task: the training.
        num_images: of the `train` and the `test` split; empty where the data is not here.
        folds: of the training images.
    """
    flags = check_words(task, task.words(Path("output")))
    num_trained = num_images.get("train", 0) * (1.0 if task.fold is None else 1 - 1 / folds)
    seen = flags.total_iter_num * flags.train_batch_size
    if "num_epochs" in flags.given:
        seen = math.ceil(flags.num_epochs * num_trained)
        if not seen:
            return None

    size = flags.image_shape[1:] if flags.image_shape else image_size_of(flags.model)
    head = tuple((name, getattr(flags, name)) for name in MODEL_OPTIONS)
    cost = image_cost(flags.model, flags.embedding_size, head, size, flags.device)
    if flags.trainable == "head":  # on features, which one of all trainings computes
        seconds = HEAD_START + seen / HEAD_RATE
        return Estimate(seconds, seconds, 4.0 * cost.weights)

    tested = num_images.get("test", 0) if task.fold is None else num_images.get("train", 0) / folds
    passes = (1 + BACKWARD) * seen + tested
    at_once = min(flags.train_batch_size, flags.chunk_size or flags.train_batch_size)
    memory = at_once * cost.activation + 4 * cost.weights * (
        2 + STATES[OPTIMIZERS[flags.optimizer]]
    )
    return Estimate(
        seconds=cost.seconds * passes / (1 + BACKWARD),
        gpu_seconds=max(cost.flops * passes / GPU_FLOPS, GPU_STEP * seen / flags.train_batch_size),
        memory=memory,
    )


@cache
def image_cost(
    model: str,
    embedding_size: int,
    head: tuple[tuple[str, object], ...],
    size: tuple[int, int],
    device: str,
) -> ImageCost:
    """Measure what an image of a height and width costs in a network with random weights."""
    shape = (3, *size)
    options = ModelOptions(
        model=model,
        embedding_size=embedding_size,
        image_shape=shape,
        transform=default_transform(model),
        pretrained_model=None,
        **dict(head),  # type: ignore[arg-type]
    )
    network = build_network(options).train()
    activation = activation_bytes(network, size, None)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(torch.zeros(1, *shape))
    flops = counter.get_total_flops()

    where = choose_device(device, torch.cuda.is_available(), World())
    network.train().to(where)
    images = torch.zeros(TRIED[where.type], *shape, device=where)
    seconds, threads = math.inf, torch.get_num_threads()
    torch.set_num_threads(1)
    for _ in range(3):
        started = time.perf_counter()
        network(images).sum().backward()
        if where.type == "cuda":
            torch.cuda.synchronize(where)
        seconds = min(seconds, time.perf_counter() - started)
    torch.set_num_threads(threads)
    weights = sum(parameter.numel() for parameter in network.parameters())
    return ImageCost(seconds / len(images), flops, activation, weights)


def minutes_text(seconds: float) -> str:
    """Return a time in seconds, minutes, hours or days."""
    for unit, length in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"
