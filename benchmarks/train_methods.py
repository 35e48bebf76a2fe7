"""The ways to train that `bench_train` compares, and the process that measures one."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from argparse import Namespace
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import train_pair
from benchmarks.common import clocks, memory
from metric_learning.common.flags import parse_flags
from metric_learning.engine.parallel.devices import choose_amp, place
from metric_learning.engine.parallel.distributed import World
from metric_learning.engine.run.folder import Run
from metric_learning.engine.run.signals import StopRequest
from metric_learning.engine.train.fit import fit
from metric_learning.engine.train.optimizers import build_optimizer
from metric_learning.engine.train.setup import set_up
from metric_learning.losses import build_loss
from metric_learning.models import build_model
from metric_learning.reader.transforms import IMAGENET_MEAN, IMAGENET_STD

WARM_UP = 3  # steps before the clock starts
DISTRIBUTIONS = ("torch", "torchvision", "pillow", "opencv-python-headless", "numpy")
Stamp = Callable[[], None]  # called once per step


@dataclass(frozen=True)
class Work:
    """What is trained.

    Attributes:
        model: name of the network.
        image_size: S in pixels.
        batch_size: B, images per step.
        samples_each_class: K.
        num_steps: of the warm-up and of those that are measured.
        num_workers: processes that read images.
        folder: train/CLASS/*.jpg and their list train.txt; a place for what is written.
        device: cpu or cuda.
    """

    model: str
    image_size: int
    batch_size: int
    samples_each_class: int
    num_steps: int
    num_workers: int
    folder: str
    device: str


@dataclass(frozen=True)
class Method:
    """One way to train.

    Attributes:
        train: makes the steps of a Work and calls the stamp at the loss of each.
        job: what it does, for people.
        batches: how many batches of the Work's size it makes into one.
        package: top-level module that it needs beyond those of this project.
    """

    train: Callable[[Work, Stamp], None]
    job: str
    batches: int = 1
    package: str = "torch"


def flags_of(work: Work, *more: str) -> tuple[Namespace, set[str]]:
    """Return the flags of `train_pair.py` for a Work: EML, no tests, no numbered checkpoints."""
    return parse_flags(
        "",
        train_pair.FLAGS,
        [
            "--dataset=list",
            f"--train_list={work.folder}/train.txt",
            f"--model={work.model}",
            f"--image_shape=3,{work.image_size},{work.image_size}",
            "--transform=standard",
            "--loss_name=eml",
            f"--samples_each_class={work.samples_each_class}",
            f"--train_batch_size={work.batch_size}",
            f"--total_iter_num={work.num_steps}",
            f"--num_workers={work.num_workers}",
            f"--device={work.device}",
            f"--model_save_dir={work.folder}/output",
            *("--test_iter_step=0", "--save_iter_step=0", "--amp=off"),
            *more,
        ],
    )


def train_bare(work: Work, stamp: Stamp, *more: str) -> None:
    """Make steps on one batch that lies on the device: network, loss and optimizer, no more."""
    args, _ = flags_of(work, *more)
    device = torch.device(work.device)
    model = build_model(args.model, image_size=work.image_size)
    place(model, device)
    model.train()
    criterion = build_loss("eml", samples_each_class=work.samples_each_class)
    optimizer = build_optimizer(model, model.head, criterion, args)
    network: Any = torch.compile(model) if args.compile else model
    dtype = choose_amp(args.amp, device)
    images = torch.randn(work.batch_size, 3, work.image_size, work.image_size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.arange(work.batch_size, device=device) // work.samples_each_class
    for _ in range(work.num_steps):
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            embeddings = network(images)
        stamp()
        loss = criterion(embeddings.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def train_this(work: Work, stamp: Stamp, *more: str) -> None:
    """Train with this project, as `train_pair.py` does."""

    def compute_loss(
        criterion: nn.Module, embeddings: Tensor, labels: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        stamp()
        return train_pair.compute_loss(criterion, embeddings, labels)

    args, given = flags_of(work, *more)
    training = set_up(args, given, train_pair.make_sampler, World())
    with Run(Path(args.model_save_dir), args) as run:
        fit(training, run, compute_loss, StopRequest(training.world))


def train_cached(work: Work, stamp: Stamp, *more: str) -> None:
    """Train with this project from a cache of decoded images."""
    train_this(work, stamp, f"--cache={work.folder}/cache", *more)


def train_chunked(work: Work, stamp: Stamp) -> None:
    """Train with this project on batches that are larger than what the network sees at once."""
    size = work.batch_size // METHODS["chunked"].batches
    train_cached(work, stamp, f"--chunk_size={size}")


def train_fast(work: Work, stamp: Stamp) -> None:
    """Train with this project as on a GPU that has bfloat16."""
    train_cached(work, stamp, "--amp=bfloat16", "--compile=True")


def train_bare_fast(work: Work, stamp: Stamp) -> None:
    """Make bare steps as on a GPU that has bfloat16."""
    train_bare(work, stamp, "--amp=bfloat16", "--compile=True")


def train_pml(work: Work, stamp: Stamp) -> None:
    """Train with pytorch-metric-learning's trainer, as its documentation shows."""
    from pytorch_metric_learning import losses, samplers, trainers
    from torchvision import datasets, transforms

    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(work.image_size),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    images = datasets.ImageFolder(f"{work.folder}/train", transform)
    sampler = samplers.MPerClassSampler(
        images.targets,
        work.samples_each_class,
        work.batch_size,
        length_before_new_iter=work.batch_size * work.num_steps,
    )
    device = torch.device(work.device)
    model = build_model(work.model, image_size=work.image_size).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-4)
    trainers.MetricLossOnly(
        {"trunk": model},
        {"trunk_optimizer": optimizer},
        work.batch_size,
        {"metric_loss": losses.TripletMarginLoss(margin=0.1)},
        images,
        sampler=sampler,
        iterations_per_epoch=work.num_steps,
        dataloader_num_workers=work.num_workers,
        data_device=device,
        end_of_iteration_hook=lambda trainer: stamp(),
    ).train(num_epochs=1)


METHODS = {
    "bare": Method(
        train_bare, "network, loss and optimizer on one batch of random numbers on the device"
    ),
    "this": Method(train_this, "train_pair.py from JPEG files"),
    "cached": Method(train_cached, "train_pair.py --cache"),
    "chunked": Method(
        train_chunked, "train_pair.py --cache --chunk_size=B on batches of 32 B images", batches=32
    ),
    "pml": Method(
        train_pml,
        "pytorch-metric-learning's MetricLossOnly trainer with torchvision's transforms",
        package="pytorch_metric_learning",
    ),
    "bare_fast": Method(train_bare_fast, "bare in bfloat16, compiled"),
    "fast": Method(train_fast, "train_pair.py --cache --amp=bfloat16 --compile=True"),
}


def measure(name: str, work: Work) -> dict[str, Any]:
    """Train once and say what a step took.

    Returns:
        `wall_seconds` and `cpu_seconds` per step after the warm-up, of the process and its workers;
        `peak_bytes` of memory beyond what was held before, of the device on a GPU; `versions`.
    """
    is_cuda = work.device.startswith("cuda")
    held = memory("VmRSS")
    stamps: list[np.ndarray] = []

    def stamp() -> None:
        if is_cuda and len(stamps) in (WARM_UP, work.num_steps - 1):
            torch.cuda.synchronize()
        stamps.append(clocks())

    METHODS[name].train(work, stamp)
    assert len(stamps) == work.num_steps
    cpu_seconds, wall_seconds = (stamps[-1] - stamps[WARM_UP]) / (work.num_steps - 1 - WARM_UP)
    found: dict[str, str] = {}
    for distribution in (*DISTRIBUTIONS, "pytorch-metric-learning"):
        with suppress(importlib.metadata.PackageNotFoundError):
            found[distribution] = importlib.metadata.version(distribution)
    return {
        "cpu_seconds": float(cpu_seconds),
        "wall_seconds": float(wall_seconds),
        "peak_bytes": torch.cuda.max_memory_allocated() if is_cuda else memory("VmHWM") - held,
        "versions": found,
    }


def main() -> None:
    """Measure METHOD on the WORK (JSON); the last line is the result."""
    name, work = sys.argv[1:]
    print("\n" + json.dumps(measure(name, Work(**json.loads(work)))))


if __name__ == "__main__":
    main()
