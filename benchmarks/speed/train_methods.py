"""The ways to train that `benchmarks.speed.train` compares, and the process that measures one."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.common import clocks, memory, versions
from metric_learning.common.flags import Flags
from metric_learning.engine.options.parts import OptimizerOptions, pick
from metric_learning.engine.options.training_table import PAIR, parse_training
from metric_learning.engine.parallel.devices import choose_amp, place
from metric_learning.engine.train import stages
from metric_learning.engine.train.optimizers import build_optimizer
from metric_learning.engine.train.train import train
from metric_learning.losses import build_loss
from metric_learning.models import build_model
from metric_learning.reader.transforms import IMAGENET_MEAN, IMAGENET_STD
from metric_learning.train_pair import FLAGS

LEAST_CLASSES = 8  # of a batch
WARM_UP = 3  # steps before the clock starts
DISTRIBUTIONS = (
    *("torch", "torchvision", "pillow", "opencv-python-headless", "numpy"),
    "pytorch-metric-learning",
)
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

    @property
    def num_classes(self) -> int:
        """How many classes its batch has."""
        return LEAST_CLASSES * max(1, self.batches // 4)


def flags_of(work: Work, *more: str) -> Flags:
    """Return the flags of `train_pair.py` for a Work: EML, no tests, no numbered checkpoints."""
    size = work.image_size
    batches = f"--train_batch_size={work.batch_size}", f"--total_iter_num={work.num_steps}"
    words = (
        *("--dataset=list", f"--train_list={work.folder}/train.txt", "--transform=standard"),
        *(f"--model={work.model}", f"--image_shape=3,{size},{size}", "--loss_name=eml"),
        *(*batches, f"--samples_each_class={work.samples_each_class}", "--amp=off"),
        *(f"--num_workers={work.num_workers}", f"--device={work.device}"),
        *(f"--model_save_dir={work.folder}/output", "--test_iter_step=0", "--save_iter_step=0"),
    )
    return parse_training("", PAIR, FLAGS, [*words, *more])


def train_bare(work: Work, stamp: Stamp, *more: str) -> None:
    """Make steps on one batch that lies on the device: network, loss and optimizer, no more."""
    flags = flags_of(work, *more)
    device = torch.device(work.device)
    model = build_model(work.model, image_size=work.image_size)
    place(model, device)
    model.train()
    criterion = build_loss("eml", samples_each_class=work.samples_each_class)
    optimizer = build_optimizer(model, model.head, criterion, pick(OptimizerOptions, flags))
    network: Any = torch.compile(model) if flags.compile else model
    dtype = choose_amp(flags.amp, device)

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

    def loss(
        criterion: nn.Module, embeddings: Tensor, labels: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        stamp()
        return stages.PAIR.loss(criterion, embeddings, labels)

    train(flags_of(work, *more), stages.PAIR._replace(loss=loss))


def train_cached(work: Work, stamp: Stamp, *more: str) -> None:
    """Train with this project from a cache of decoded images."""
    train_this(work, stamp, f"--cache={work.folder}/cache", *more)


def train_chunked(work: Work, stamp: Stamp) -> None:
    """Train with this project on batches that are larger than what the network sees at once."""
    train_cached(work, stamp, f"--chunk_size={work.batch_size // METHODS['chunked'].batches}")


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


AS_ON_A_GPU = ("--amp=bfloat16", "--compile=True")
METHODS = {
    "bare": Method(train_bare, "network, loss and optimizer on a batch that lies on the device"),
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
    "bare_fast": Method(
        lambda work, stamp: train_bare(work, stamp, *AS_ON_A_GPU), "bare in bfloat16, compiled"
    ),
    "fast": Method(
        lambda work, stamp: train_cached(work, stamp, *AS_ON_A_GPU),
        f"train_pair.py --cache {' '.join(AS_ON_A_GPU)}",
    ),
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
    return {
        "cpu_seconds": float(cpu_seconds),
        "wall_seconds": float(wall_seconds),
        "peak_bytes": torch.cuda.max_memory_allocated() if is_cuda else memory("VmHWM") - held,
        "versions": versions(*DISTRIBUTIONS),
    }


def main() -> None:
    """Measure METHOD on the WORK (JSON); the last line is the result."""
    name, work = sys.argv[1:]
    print("\n" + json.dumps(measure(name, Work(**json.loads(work)))))


if __name__ == "__main__":
    main()
