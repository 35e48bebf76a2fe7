"""Trainings of the project: their flags, whole runs, and runs whose steps are made one by one."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.section import Section
from metric_learning import train_elem, train_pair
from metric_learning.engine.options.training_table import ELEM, PAIR, parse_training
from metric_learning.engine.parallel.world import World
from metric_learning.engine.run.signals import StopRequest
from metric_learning.engine.train import stages
from metric_learning.engine.train.start import start_run
from metric_learning.engine.train.step import Step
from metric_learning.engine.train.train import set_train_mode

STAGES = {1: (train_elem, ELEM, stages.ELEM), 2: (train_pair, PAIR, stages.PAIR)}


def demo_words(section: Section, run_name: str, *more: str) -> list[str]:
    """Return flags of a training on the drawn demo data set."""
    size, workers = section.size((64, min(4, section.workers)), (32, 0))
    return [
        *("--dataset=demo", f"--data_dir={section.work / 'demo'}", "--min_crop_area=0.3"),
        *(section.size("--model=ResNet18", "--model=test_resnet"), "--display_iter_step=1"),
        *(f"--image_shape=3,{size},{size}", f"--num_workers={workers}"),
        *(*shared_words(section), f"--run_name={run_name.replace(' ', '_')}", *more),
    ]


def stage_words(section: Section, stage: int, name: str, *more: str, steps: int = 25) -> list[str]:
    """Return flags of a training of a stage on it, with one test at its end."""
    steps = section.size(steps, 2)
    own = [f"--total_iter_num={steps}", f"--test_iter_step={steps}"]
    if stage == 1:
        own += ["--loss_name=arcmargin", "--arc_scale=16", "--arc_margin=0.1", "--lr=0.1"]
        own += ["--lr_head_mult=10", "--lr_strategy=cosine_decay"]
    else:
        own += ["--loss_name=eml", "--samples_each_class=2", "--lr=0.02"]
    own += [f"--train_batch_size={section.size(40 * stage, 8)}"]
    return demo_words(section, name, *own, *more)


def photo_words(section: Section, batch: int, *more: str) -> list[str]:
    """Return flags of a training of stage 2 on the drawn photographs."""
    size = section.size(224, 32)
    return [
        *("--dataset=list", f"--train_list={section.images}/train.txt", "--loss_name=eml"),
        *(section.size("--model=ResNet50", "--model=test_resnet"), "--samples_each_class=4"),
        *(f"--image_shape=3,{size},{size}", f"--num_workers={section.workers}"),
        *(f"--train_batch_size={batch}", "--test_iter_step=0", *shared_words(section), *more),
    ]


def shared_words(section: Section) -> list[str]:
    """Return the flags of all trainings."""
    own = [f"--device={section.device}", f"--model_save_dir={section.own}"]
    return ["--transform=standard", "--save_iter_step=0", *own]


def train(stage: int, words: Sequence[str]) -> Path:
    """Run a training script and return the folder of its run."""
    return STAGES[stage][0].main(words)


def records_of(folder: Path, kind: str, what: str) -> list[Any]:
    """Return one of the values that a run wrote at its steps (train) or tests (test)."""
    records = [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]
    return [record[what] for record in records if record["kind"] == kind]


def train_and_sum_up(stage: int, words: Sequence[str]) -> dict[str, Any]:
    """Run a training script; return its losses, tests, and images per second."""
    folder = train(stage, words)
    losses, rates = (records_of(folder, "train", what) for what in ("loss", "images_per_second"))
    row: dict[str, Any] = {name: records_of(folder, "test", name) for name in ("recall@1", "map@r")}
    row |= {"first": losses[0], "last": losses[-1], "steps": len(losses)}
    return row | {"images/s": statistics.median(rates)}


class Stepper:
    """A training of a stage whose steps are made one by one, each by a call.

    Attributes:
        waited: seconds that it waited for images.
    """

    def __init__(self, stage: int, words: Sequence[str]) -> None:
        script, table, parts = STAGES[stage]
        world = World()
        flags = parse_training("", table, script.FLAGS, words)
        self.run = run = start_run(flags, parts, world, StopRequest(world))
        options, sight = run.options, run.preprocessing
        settled = options.batches, options.machine, options.optimizer.clip_grad_norm
        self.update = Step(run.learner, parts.loss, sight, *settled)
        set_train_mode(run.learner.model, options.optimizer.freeze_bn)
        self.batches, self.waited = iter(run.batches()), 0.0

    def __call__(self) -> None:
        """Make a step."""
        begin = time.perf_counter()
        batch = next(self.batches)
        self.waited += time.perf_counter() - begin
        self.update(batch, self.run.step)
        self.run.step += 1

    def weights(self) -> Tensor:
        """Return all weights of the network as they are now, in one vector on the CPU."""
        parameters = self.run.learner.model.parameters()
        return torch.cat([parameter.detach().flatten().cpu() for parameter in parameters])
