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

SCRIPTS = {1: train_elem, 2: train_pair}
STAGES = {1: (ELEM, stages.ELEM), 2: (PAIR, stages.PAIR)}
Records = list[dict[str, Any]]


def demo_words(section: Section, run_name: str, *more: str) -> list[str]:
    """Return flags of a training on the drawn demo data set."""
    size, workers = section.size(64, 32), section.size(4, 0)
    return [
        *("--dataset=demo", f"--data_dir={section.work / 'demo'}", "--transform=standard"),
        *(section.size("--model=ResNet18", "--model=test_resnet"), "--min_crop_area=0.3"),
        *(f"--image_shape=3,{size},{size}", f"--num_workers={min(workers, section.workers)}"),
        *(f"--device={section.device}", "--display_iter_step=1", "--save_iter_step=0"),
        *(f"--model_save_dir={section.own}", f"--run_name={run_name}", *more),
    ]


def first_stage(section: Section, run_name: str, *more: str, steps: int = 25) -> list[str]:
    """Return flags of a training of stage 1, with one test at its end."""
    steps = section.size(steps, 2)
    own = ["--loss_name=arcmargin", "--arc_scale=16", "--arc_margin=0.1", "--lr_head_mult=10"]
    own += ["--lr=0.1", f"--train_batch_size={section.size(40, 8)}", "--lr_strategy=cosine_decay"]
    own += [f"--total_iter_num={steps}", f"--test_iter_step={steps}"]
    return demo_words(section, run_name, *own, *more)


def second_stage(
    section: Section, run_name: str, weights: Path, *more: str, steps: int = 40
) -> list[str]:
    """Return flags of a training of stage 2 from the weights of a checkpoint."""
    steps = section.size(steps, 2)
    own = ["--loss_name=eml", "--samples_each_class=2", "--lr=0.02"]
    own += [f"--train_batch_size={section.size(80, 8)}", f"--pretrained_model={weights}"]
    own += [f"--total_iter_num={steps}", f"--test_iter_step={steps}"]
    return demo_words(section, run_name, *own, *more)


def photo_words(section: Section, images: Path, batch: int, *more: str) -> list[str]:
    """Return flags of a training of stage 2 on the drawn photographs."""
    size = section.size(224, 32)
    return [
        *("--dataset=list", f"--train_list={images}/train.txt", "--transform=standard"),
        *(section.size("--model=ResNet50", "--model=test_resnet"), "--loss_name=eml"),
        *(f"--image_shape=3,{size},{size}", "--samples_each_class=4"),
        *(f"--train_batch_size={batch}", f"--num_workers={section.workers}"),
        *(f"--device={section.device}", "--test_iter_step=0", "--save_iter_step=0"),
        *(f"--model_save_dir={section.own}", *more),
    ]


def train_quietly(stage: int, words: Sequence[str]) -> Records:
    """Run a training script and return the records of its steps and tests.

    Raises:
        RuntimeError: it ended with an error message.
    """
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            folder = SCRIPTS[stage].main(words)
    except SystemExit as error:
        raise RuntimeError(f"status {error.code}: {output.getvalue()[-300:]}") from error
    finally:
        print(output.getvalue()[-3000:])
    return read_records(folder)


def read_records(folder: Path) -> Records:
    """Return the records of a run folder."""
    return [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]


def losses_of(records: Records) -> list[float]:
    """Return the losses of the steps."""
    return [record["loss"] for record in records if record["kind"] == "train"]


def summary_of(records: Records) -> dict[str, Any]:
    """Return the first and last loss, the last test, and images per second."""
    losses = losses_of(records)
    tests = [record for record in records if record["kind"] == "test"]
    rates = sorted(r["images_per_second"] for r in records if r["kind"] == "train")
    return {
        "first": losses[0],
        "last": losses[-1],
        "steps": len(losses),
        **{name: tests[-1][name] for name in ("recall@1", "map@r") if tests},
        "images/s": rates[len(rates) // 2],
    }


class Stepper:
    """A training whose steps are made one by one, each by a call.

    Args:
        stage: 1 or 2.
        words: flags of its script.

    Attributes:
        waited: seconds that it waited for images.
    """

    def __init__(self, stage: int, words: Sequence[str]) -> None:
        table, parts = STAGES[stage]
        world = World()
        flags = parse_training("", table, SCRIPTS[stage].FLAGS, words)
        self.run = start_run(flags, parts, world, StopRequest(world))
        options, learner = self.run.options, self.run.learner
        self.update = Step(
            learner,
            parts.loss,
            self.run.preprocessing,
            options.batches,
            options.machine,
            options.optimizer.clip_grad_norm,
        )
        set_train_mode(learner.model, options.optimizer.freeze_bn)
        self.batches = iter(self.run.batches())
        self.waited = 0.0

    def __call__(self) -> dict[str, Tensor] | None:
        begin = time.perf_counter()
        batch = next(self.batches)
        self.waited += time.perf_counter() - begin
        figures = self.update(batch, self.run.step)
        self.run.step += 1
        return figures

    def weights(self) -> Tensor:
        """Return all weights of the network as they are now, in one vector on the CPU."""
        parameters = self.run.learner.model.parameters()
        return torch.cat([parameter.detach().flatten().cpu() for parameter in parameters])
