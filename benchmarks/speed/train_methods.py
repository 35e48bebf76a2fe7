"""The ways to train that `benchmarks.speed.train` compares, and the process that measures one."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.common import clocks, memory, seconds_of, versions
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
Stamp = Callable[[], None]  # called once per step


class Work(NamedTuple):
    """What is trained: images of S pixels in batches of B, K of each class.

    `folder` has train/CLASS/*.jpg and their list train.txt, and a place for what is written.
    """

    model: str
    image_size: int
    batch_size: int
    samples_each_class: int
    num_steps: int
    num_workers: int
    folder: str
    device: str = "cpu"


class Method(NamedTuple):
    """One way to train: it calls the stamp at the loss of each step; what it does, for people.

    It makes so many batches of the Work's size into one, of so many classes.
    """

    train: Callable[[Work, Stamp], None]
    job: str
    batches: int = 1
    num_classes: int = LEAST_CLASSES


def flags_of(work: Work, *more: str) -> Flags:
    """Return the flags of `train_pair.py` for a Work: EML, no tests, no numbered checkpoints."""
    size = work.image_size
    words = (
        *("--dataset=list", f"--train_list={work.folder}/train.txt", "--transform=standard"),
        *(f"--model={work.model}", f"--image_shape=3,{size},{size}", "--loss_name=eml"),
        *(f"--train_batch_size={work.batch_size}", f"--total_iter_num={work.num_steps}"),
        *(f"--samples_each_class={work.samples_each_class}", "--amp=off"),
        *(f"--num_workers={work.num_workers}", f"--device={work.device}"),
        *(f"--model_save_dir={work.folder}/output", "--test_iter_step=0", "--save_iter_step=0"),
    )
    return parse_training("", PAIR, FLAGS, [*words, *more])


def train_bare(work: Work, stamp: Stamp, *more: str) -> None:
    """Make steps on one batch that lies on the device: network, loss and optimizer, no more."""
    flags, device = flags_of(work, *more), torch.device(work.device)
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

    augment = [transforms.RandomResizedCrop(work.image_size), transforms.RandomHorizontalFlip()]
    to_floats = [transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    images = datasets.ImageFolder(
        f"{work.folder}/train", transforms.Compose([*augment, *to_floats])
    )
    k, size = work.samples_each_class, work.batch_size
    sampler = samplers.MPerClassSampler(images.targets, k, size, size * work.num_steps)
    model = build_model(work.model, image_size=work.image_size)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-4)

    trainers.MetricLossOnly(
        {"trunk": model},
        {"trunk_optimizer": optimizer},
        size,
        {"metric_loss": losses.TripletMarginLoss(margin=0.1)},
        images,
        sampler=sampler,
        iterations_per_epoch=work.num_steps,
        dataloader_num_workers=work.num_workers,
        data_device=torch.device("cpu"),
        end_of_iteration_hook=lambda trainer: stamp(),
    ).train(num_epochs=1)


METHODS = {
    "bare": Method(train_bare, "network, loss and optimizer on a batch that lies on the device"),
    "this": Method(train_this, "train_pair.py from JPEG files"),
    "cached": Method(train_cached, "train_pair.py --cache"),
    "chunked": Method(
        train_chunked, "train_pair.py --cache --chunk_size=B on batches of 32 B images", 32, 64
    ),
    "pml": Method(
        train_pml, "pytorch-metric-learning's MetricLossOnly trainer with torchvision's transforms"
    ),
}


def measure(name: str, work: Work) -> dict[str, Any]:
    """Train once and say what a step took.

    Returns:
        `wall_seconds` and `cpu_seconds` per step after the warm-up, of the process and its workers;
        `peak_bytes` of memory beyond what was held before; `versions`.
    """
    held = memory("VmRSS")
    stamps: list[np.ndarray] = []
    METHODS[name].train(work, lambda: stamps.append(clocks()))
    assert len(stamps) == work.num_steps

    seconds = (stamps[-1] - stamps[WARM_UP]) / (work.num_steps - 1 - WARM_UP)
    peak_bytes = memory("VmHWM") - held
    return seconds_of(seconds) | {"peak_bytes": peak_bytes, "versions": versions()}


if __name__ == "__main__":  # measure METHOD on the WORK (JSON); the last line is the result
    print("\n" + json.dumps(measure(sys.argv[1], Work(*json.loads(sys.argv[2])))))
