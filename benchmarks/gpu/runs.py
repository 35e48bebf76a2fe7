"""Trainings of the project: their flags, whole runs, and runs whose steps are made one by one."""

from __future__ import annotations

import contextlib
import io
import json
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
Records = list[dict[str, Any]]


def demo_words(section: Section, run_name: str, *more: str) -> list[str]:
    """Return flags of a training on the drawn demo data set."""
    size, workers = section.size((64, min(4, section.workers)), (32, 0))
    return [
        *("--dataset=demo", f"--data_dir={section.work / 'demo'}", "--transform=standard"),
        *(section.size("--model=ResNet18", "--model=test_resnet"), "--min_crop_area=0.3"),
        *(f"--image_shape=3,{size},{size}", f"--num_workers={workers}", "--display_iter_step=1"),
        *(f"--device={section.device}", "--save_iter_step=0", f"--model_save_dir={section.own}"),
        *(f"--run_name={run_name.replace(' ', '_')}", *more),
    ]


def stage_words(section: Section, stage: int, name: str, *more: str, steps: int = 25) -> list[str]:
    """Return flags of a training of a stage on it, with one test at its end."""
    steps = section.size(steps, 2)
    batch = section.size({1: 40, 2: 80}[stage], 8)
    own = [f"--train_batch_size={batch}", f"--total_iter_num={steps}", f"--test_iter_step={steps}"]
    if stage == 1:
        own += ["--loss_name=arcmargin", "--arc_scale=16", "--arc_margin=0.1", "--lr=0.1"]
        own += ["--lr_head_mult=10", "--lr_strategy=cosine_decay"]
    else:
        own += ["--loss_name=eml", "--samples_each_class=2", "--lr=0.02"]
    return demo_words(section, name, *own, *more)


def photo_words(section: Section, batch: int, *more: str) -> list[str]:
    """Return flags of a training of stage 2 on the drawn photographs."""
    size = section.size(224, 32)
    return [
        *("--dataset=list", f"--train_list={section.images()}/train.txt", "--loss_name=eml"),
        *(section.size("--model=ResNet50", "--model=test_resnet"), "--transform=standard"),
        *(f"--image_shape=3,{size},{size}", "--samples_each_class=4", "--save_iter_step=0"),
        *(f"--train_batch_size={batch}", f"--num_workers={section.workers}"),
        *(f"--device={section.device}", "--test_iter_step=0", f"--model_save_dir={section.own}"),
        *more,
    ]


def train_quietly(stage: int, words: Sequence[str]) -> Records:
    """Run a training script and return the records of its steps and tests.

    Raises:
        RuntimeError: it ended with an error message.
    """
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            return read_records(STAGES[stage][0].main(words))
    except SystemExit as error:
        raise RuntimeError(f"status {error.code}: {output.getvalue()[-300:]}") from error
    finally:
        print(output.getvalue()[-3000:])


def train_and_sum_up(stage: int, words: Sequence[str]) -> dict[str, Any]:
    """Run a training script; return its first and last loss, last test, and images per second."""
    records = train_quietly(stage, words)
    steps = [record for record in records if record["kind"] == "train"]
    tests = [record for record in records if record["kind"] == "test"]
    rates = sorted(record["images_per_second"] for record in steps)
    row = {"first": steps[0]["loss"], "last": steps[-1]["loss"], "steps": len(steps)}
    row |= {name: tests[-1][name] for name in ("recall@1", "map@r") if tests}
    return row | {"images/s": rates[len(rates) // 2]}


def read_records(folder: Path) -> Records:
    """Return the records of a run folder."""
    return [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]


def losses_of(records: Records) -> list[float]:
    """Return the losses of the steps."""
    return [record["loss"] for record in records if record["kind"] == "train"]


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
