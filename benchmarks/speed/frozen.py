"""Compare training on kept features, --trainable=head, with the bare steps on such features.

OMP_NUM_THREADS=1 python -m benchmarks.speed.frozen --num_steps=400 --rounds=3

All is measured in turns in one process, as a leaderboard runs it: the weights, the features and
what is compiled are there. What counts is the ratio of CPU seconds to those of `bare`.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import common
from benchmarks.common import Rounds, clocks, seconds_of
from benchmarks.speed.reader import write_images
from metric_learning import train_elem
from metric_learning.common.cli import user_errors
from metric_learning.common.flags import Flag, parse_flags, positive
from metric_learning.losses import build_loss
from metric_learning.models import build_model, save_weights

MODEL, IMAGE_SIZE = "mobilenetv2_100", 32
FLAGS = (
    Flag("num_images", positive, 1400, "training images"),
    Flag("num_classes", positive, 25, "their classes"),
    Flag("batch_size", positive, 256, "images per step"),
    Flag("embedding_size", positive, 128, "width of the layer that trains"),
    Flag("num_steps", positive, 165, "steps of a run (30 epochs)"),
    Flag("rounds", positive, 3, "times that each is measured"),
)
JOBS = {
    "bare": "embedding layer, loss and optimizer on one batch of features, no more",
    "steps": "those steps in a run of `train_elem.py`: a long run less one of a step",
    "run": "a run of one step: all else that `main` does, and its test",
}


def main(argv: Sequence[str] | None = None) -> Rounds:
    """Print the table in Markdown; return what each round of each job took."""
    with user_errors(), tempfile.TemporaryDirectory() as folder:
        flags = parse_flags(__doc__, FLAGS, argv)
        write_data(Path(folder), flags.num_images, flags.num_classes)
        size = flags.batch_size, flags.embedding_size, flags.num_steps

        def measure(name: str) -> dict[str, float]:
            if name == "bare":
                return measure_bare(flags.num_classes, *size)
            short = measure_run(folder, *size[:2], 1)
            if name == "run":
                return short
            long = measure_run(folder, *size[:2], flags.num_steps + 1)
            return {key: long[key] - short[key] for key in long}

        for name in JOBS:  # computes features, and compiles
            measure(name)
        rounds = common.in_turns(JOBS, flags.rounds, measure)

        conditions = (
            f"{flags.num_images:,} images of {flags.num_classes} classes, features of {MODEL}, "
            f"normsoftmax, batches of {flags.batch_size}; rounds in turns in one process after a "
            "warm-up, the best of them counts."
        )
        print(table(rounds, flags.batch_size * flags.num_steps))
        print(common.notes("frozen", argv, conditions, rounds, JOBS), sep="\n\n")
        return rounds


def write_data(folder: Path, num_images: int, num_classes: int) -> None:
    """Draw training and test images, and write random weights."""
    for split, number in (("train", num_images), ("test", 4 * num_classes)):
        for label in range(num_classes):
            own = folder / "images" / split / f"{split}_{label}"
            own.mkdir(parents=True)
            write_images(own, -(-number // num_classes), (IMAGE_SIZE, IMAGE_SIZE), label)
    save_weights(build_model(MODEL), folder / "weights.safetensors", {})


def measure_bare(
    num_classes: int, batch_size: int, embedding_size: int, num_steps: int
) -> dict[str, float]:
    """Measure steps on a batch that is there."""
    layer = torch.nn.Linear(build_model(MODEL).feature_size, embedding_size)
    loss = build_loss("normsoftmax", class_dim=num_classes, embedding_size=embedding_size)
    parameters = [*layer.parameters(), *loss.parameters()]
    optimizer = torch.optim.SGD(parameters, 0.01, momentum=0.9, weight_decay=1e-4, fused=True)
    features = torch.rand(batch_size, layer.in_features)
    labels = torch.arange(batch_size) % num_classes

    started = clocks()
    for _ in range(num_steps):
        optimizer.zero_grad()
        loss(layer(features), labels)[0].backward()
        optimizer.step()
    return seconds_of(clocks() - started)


def measure_run(
    folder: str, batch_size: int, embedding_size: int, num_steps: int
) -> dict[str, float]:
    """Measure a whole run, with a test at its end."""
    argv = (
        *("--dataset=folder", f"--data_dir={folder}/images", f"--model={MODEL}"),
        *(f"--image_shape=3,{IMAGE_SIZE},{IMAGE_SIZE}", f"--embedding_size={embedding_size}"),
        *(f"--pretrained_model={folder}/weights.safetensors", "--trainable=head"),
        *("--loss_name=normsoftmax", f"--train_batch_size={batch_size}", "--use_gpu=False"),
        *(f"--total_iter_num={num_steps}", f"--test_iter_step={num_steps}"),
        *("--save_iter_step=0", "--display_iter_step=100", f"--model_save_dir={folder}/output"),
    )
    started = clocks()
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        train_elem.main(argv)
    return seconds_of(clocks() - started)


def table(rounds: Rounds, num_images: int) -> str:
    """Return the Markdown table: a row per job, its best round; `num_images` are in its steps."""
    best = {name: min(each["cpu_seconds"] for each in found) for name, found in rounds.items()}
    rows = []
    for name, seconds in best.items():
        rate = "" if name == "run" else f"{num_images / seconds:,.0f}"
        ratio = f"{seconds / best['bare']:.2f}"
        values = common.values_of(rounds[name], "cpu_seconds", 2)
        rows.append([name, f"{seconds:.2f}", ratio, rate, values])
    titles = ("job", "CPU s", "times bare", "images per CPU second", "CPU s of each round")
    return common.markdown(titles, rows)


if __name__ == "__main__":
    main()
