"""Compare the cost of a training step: this project, the bare step, a peer's training loop.

python -m benchmarks.speed.train --model=ResNet50 --image_size=224 --batch_size=16 --rounds=2

The methods are measured in turns, each time in a process of its own and after a warm-up; what
counts is the ratio of images per second to those of `bare` in the same run.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import common
from benchmarks.common import Rounds, clocks, memory, seconds_of, versions
from benchmarks.speed.reader import write_images
from metric_learning import train_pair
from metric_learning.common.cli import user_errors
from metric_learning.common.flags import (
    Flag,
    Flags,
    last_of_each,
    natural,
    parse_flags,
    positive,
)
from metric_learning.engine.options.parts import OptimizerOptions, pick
from metric_learning.engine.options.training_table import PAIR, parse_training
from metric_learning.engine.parallel.devices import choose_amp, place
from metric_learning.engine.parallel.world import World
from metric_learning.engine.train import stages
from metric_learning.engine.train.optimizers import build_optimizer
from metric_learning.engine.train.train import train
from metric_learning.losses import build_loss
from metric_learning.models import build_model
from metric_learning.reader.transforms import IMAGENET_MEAN, IMAGENET_STD

MODULE = "benchmarks.speed.train"
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
    """One way to train: it calls the stamp at the loss of each step.

    It makes so many batches of the Work's size into one, of so many classes.
    """

    train: Callable[[Work, Stamp], None]
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
    return parse_training("", PAIR, train_pair.FLAGS, last_of_each([*words, *more]))


def train_bare(work: Work, stamp: Stamp, *more: str) -> None:
    """Make steps on one batch that lies on the device: network, loss and optimizer, no more."""
    flags, device = flags_of(work, *more), torch.device(work.device)
    model = build_model(work.model, image_size=work.image_size)
    place(model, device)
    model.train()
    criterion = build_loss("eml", samples_each_class=work.samples_each_class)
    optimizer = build_optimizer(model, model.head, criterion, pick(OptimizerOptions, flags))
    network: Any = torch.compile(model) if flags.compile else model
    dtype = choose_amp(flags.amp, device, World())

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
    """Train from JPEG files, as `train_pair.py` does."""

    def loss(
        criterion: nn.Module, embeddings: Tensor, labels: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if torch.is_grad_enabled():  # not where the start is measured
            stamp()
        return stages.PAIR.loss(criterion, embeddings, labels)

    train(flags_of(work, *more), stages.PAIR._replace(loss=loss))


def train_cached(work: Work, stamp: Stamp, *more: str) -> None:
    """Train from a cache of decoded images: `train_pair.py --cache`."""
    train_this(work, stamp, f"--cache={work.folder}/cache", *more)


def train_chunked(work: Work, stamp: Stamp) -> None:
    """Train from a cache on batches of 32 B images with `--chunk_size=B`."""
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
    "bare": Method(train_bare),
    "this": Method(train_this),
    "cached": Method(train_cached),
    "chunked": Method(train_chunked, 32, 64),
    "pml": Method(train_pml),
}
BASELINE = "bare"
MEASURED = (BASELINE, "this", "cached", "pml")
FLAGS = (
    Flag("model", str, "ResNet18", "network"),
    Flag("image_size", positive, 64, "side of the network input in pixels"),
    Flag("batch_size", positive, 64, "images per step"),
    Flag("num_steps", positive, 20, f"steps that are measured, after {WARM_UP} of warm-up"),
    Flag("size", common.height_and_width, (400, 500), "height and width of the JPEG files"),
    Flag("num_workers", natural, 2, "processes that read images"),
    Flag("rounds", positive, 2, "times that each method is measured"),
    Flag("methods", common.names_among(METHODS), MEASURED, "what is measured"),
)


def main(argv: Sequence[str] | None = None) -> Rounds:
    """Print the table in Markdown; return what each round of each method took."""
    with user_errors(), tempfile.TemporaryDirectory() as folder:
        flags = parse_flags(__doc__, FLAGS, argv)
        if flags.batch_size % LEAST_CLASSES:
            raise ValueError(
                f"--batch_size={flags.batch_size}: expected a multiple of {LEAST_CLASSES} images"
            )
        works = {}
        for name in flags.methods:
            size = flags.batch_size * METHODS[name].batches
            shape = flags.image_size, size, size // METHODS[name].num_classes
            steps = flags.num_steps + WARM_UP + 1
            works[name] = Work(flags.model, *shape, steps, flags.num_workers, folder)
        make_classes(works, flags.size)
        rounds = common.in_turns(works, flags.rounds, lambda name: measure(name, works[name]))

        conditions = (
            f"{flags.model} at {flags.image_size} px, {flags.num_steps} steps after {WARM_UP} of "
            f"warm-up, in a fresh process; {flags.rounds} rounds in turns, the best of them "
            f"counts. Synthetic JPEG files of {flags.size[1]} x {flags.size[0]} pixels, "
            f"{flags.num_workers} workers. Memory: peak beyond the imports, without workers."
        )
        jobs = {name: METHODS[name].train.__doc__ for name in rounds}
        notes = common.notes("train", argv, conditions, rounds, jobs)
        print(table(works, rounds), notes, sep="\n\n")
        return rounds


def make_classes(works: Mapping[str, Work], size: tuple[int, int]) -> None:
    """Draw the images of one batch of the largest method, and write their list."""
    folder = Path(next(iter(works.values())).folder)
    each = max(work.samples_each_class for work in works.values())
    lines = []
    for number in range(max(METHODS[name].num_classes for name in works)):
        own = folder / "train" / f"class_{number:03d}"
        own.mkdir(parents=True)
        write_images(own, each, size, number)
        lines += [f"{file} {number}\n" for file in sorted(own.iterdir())]
    (folder / "train.txt").write_text("".join(lines))


def measure(name: str, work: Work) -> dict[str, Any]:
    """Measure a method in a fresh process."""
    try:
        return common.run_apart([sys.executable, "-m", MODULE, name, json.dumps(work)])
    except ValueError as error:
        raise ValueError(f"{name} {error}") from error


def measure_here(name: str, work: Work) -> None:
    """Train once; print the seconds of a step and the memory beyond what was held, in JSON."""
    held = memory("VmRSS")
    stamps: list[np.ndarray] = []
    METHODS[name].train(work, lambda: stamps.append(clocks()))
    assert len(stamps) == work.num_steps

    seconds = (stamps[-1] - stamps[WARM_UP]) / (work.num_steps - 1 - WARM_UP)
    peak_bytes = memory("VmHWM") - held
    found = seconds_of(seconds) | {"peak_bytes": peak_bytes, "versions": versions()}
    print("\n" + json.dumps(found))


def table(works: Mapping[str, Work], rounds: Rounds) -> str:
    """Return the Markdown table: a row per method with its batch size, its best round."""
    rates = {
        name: [works[name].batch_size / each["wall_seconds"] for each in found]
        for name, found in rounds.items()
    }
    baseline = max(rates.get(BASELINE, [0]))
    rows = []
    for name, found in rounds.items():
        best, peak = max(rates[name]), max(each["peak_bytes"] for each in found)
        row = [name, f"{works[name].batch_size:,}", f"{best:.1f}"]
        row += [f"{best / baseline:.3f}" if baseline else ""]
        row += [f"{min(each['cpu_seconds'] for each in found):.2f}", f"{peak / 2**20:,.0f}"]
        rows.append([*row, ", ".join(f"{rate:.1f}" for rate in rates[name])])

    titles = ("method", "images per step", "images/s", f"times {BASELINE}", "CPU s per step")
    return common.markdown((*titles, "memory MiB", "images/s of each round"), rows)


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in METHODS:  # a fresh process, with the Work (JSON)
        measure_here(sys.argv[1], Work(*json.loads(sys.argv[2])))
    else:
        main()
