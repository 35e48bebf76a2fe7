"""A training run: what it consists of, how far it has come, and what happens between its steps."""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from traceback import clear_frames
from typing import Any

import numpy as np
from tqdm import tqdm

from metric_learning.common.atomic import write_text
from metric_learning.engine.embed.embedding import embed_images, evaluation_mode
from metric_learning.engine.embed.frozen import FrozenFeatures
from metric_learning.engine.evaluate.classification import class_layer_of, class_numbers, classify
from metric_learning.engine.evaluate.scoring import chances, score_images
from metric_learning.engine.options.parts import MachineOptions, Options
from metric_learning.engine.parallel.collectives import decide_on_main, share_buffers
from metric_learning.engine.run.checkpoints import copy_checkpoint, prune, save_checkpoint
from metric_learning.engine.run.course import Course
from metric_learning.engine.run.lines import progress, training_line
from metric_learning.engine.run.resume import Start, best_so_far
from metric_learning.engine.run.run_folder import RunFolder
from metric_learning.engine.run.signals import Stopped, StopRequest
from metric_learning.engine.train.criterion import scale_options
from metric_learning.engine.train.images import BrokenImages
from metric_learning.engine.train.learner import Learner
from metric_learning.engine.train.needs import Pace
from metric_learning.engine.train.step import Meter, Outcome
from metric_learning.engine.train.watch import CollapseError, Watch, at_chance, guesses_of
from metric_learning.models import save_weights
from metric_learning.reader import ImageError, ImageSet, WorkerError
from metric_learning.reader.batches.loader import Batch, ImageLoader, train_loader
from metric_learning.reader.batches.samplers import SeededSampler
from metric_learning.reader.batches.views import FeatureBatches
from metric_learning.reader.preprocessing import Preprocessing
from metric_learning.retrieval.metrics import summarise

# Of the figures of training steps and tests, those in the line of an epoch, and their names there.
EPOCH_NAMES = {"acc1": "acc", "recall": "recall", "recall@1": "recall", "loss": "loss"}
# Errors that all ranks raise alike, between two steps, so that they can save together.
SHARED_ERRORS = (ImageError, WorkerError, CollapseError)
MOST_SKIPPED = 20  # steps in a row, after which no scale of float16 will help


class Diverged(ValueError):
    """The loss, gradients or weights of a run are not finite; such weights are not saved."""


@dataclass
class TrainingRun:
    """All that a run consists of, and how far it has come.

    Attributes:
        frozen: kept features of the images, with --trainable=head.
        path: the run folder.
        meta: what a checkpoint says of the model and its training, the step apart.
        meter: the steps since the last log line.
        epoch: the steps of the present epoch so far, with --log_epochs.
        step: completed updates.
        best: Recall@1 and step of the best test so far; empty before the first.
        tested: the last step that was tested; -1 before the first test.
        num_skipped: steps in a row that were not finite.
        outcomes: numbers of the newest steps, and what they found, which the host has not asked.
        watch: what stage 2 started from, and whether it ruins that.
        pace: how fast it is.
        course: what its tests decide.
    """

    options: Options
    learner: Learner
    train_set: ImageSet
    test_set: ImageSet | None
    frozen: FrozenFeatures | None
    sampler: SeededSampler
    preprocessing: Preprocessing
    start: Start
    stop: StopRequest
    path: Path
    meta: Mapping[str, Any]
    meter: Meter
    epoch: Meter
    watch: Watch
    step: int = 0
    best: dict[str, float] = field(default_factory=dict)
    tested: int = -1
    num_skipped: int = 0
    outcomes: deque[tuple[int, Outcome]] = field(default_factory=deque)
    pace: Pace = field(init=False)
    course: Course = field(init=False)
    folder: RunFolder = field(init=False)  # from `kept` on
    _saved: tuple[int, int] = (-1, -1)  # step and last test in the last.pt that was written

    def __post_init__(self) -> None:
        self.broken = BrokenImages(self.train_set, self.say)
        schedule, run = self.options.schedule, self.options.run
        self.course = Course(schedule)
        # Tests are those of --test_iter_step, or one an epoch.
        epoch = math.ceil(schedule.epoch_size / self.options.batches.train_batch_size)
        self.pace = Pace(
            schedule.total_iter_num, run.test_iter_step or (epoch if run.log_epochs else 0)
        )

    @property
    def machine(self) -> MachineOptions:
        """Where it computes."""
        return self.options.machine

    @property
    def num_steps_left(self) -> int:
        """How many steps are to come."""
        return max(0, self.options.schedule.total_iter_num - self.step)

    def say(self, line: str) -> None:
        """Print a line and write it to log.txt."""
        self.folder.log(line)

    def restore(self, checkpoint: Mapping[str, Any]) -> None:
        """Go on from a checkpoint; ValueError where its state is not one of this run."""
        self.step, self.best = checkpoint["step"], checkpoint["best"]
        self.tested = checkpoint.get("tested", self.step)
        try:
            self.learner.restore(checkpoint)
            self.epoch.restore(checkpoint.get("epoch", {}), self.machine.device)
            self.watch.restore(checkpoint.get("start", {}))
            self.course.restore(checkpoint.get("course", {}))
        except (TypeError, KeyError, AttributeError, IndexError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:120]
            raise ValueError(
                f"checkpoint {self.options.run.checkpoint} is damaged: its state is not that of "
                f"this model, loss and optimizer ({reason}): choose another one of the run"
            ) from error

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Write to the run folder, and leave a last.pt that resumes however the body ends."""
        flags, is_main = self.options.flags, self.machine.world.is_main
        known = self.step, self.tested, self.options.run.log_to
        with RunFolder(self.path, flags, is_main, *known) as self.folder:
            self.best = decide_on_main(
                self.machine.world, lambda: best_so_far(self.best, self.folder)
            )
            try:
                yield

            except Stopped as request:
                self.save_last()
                self.say(f"stopped by {request} after step {self.step}: {self.advice} resumes")
            except SHARED_ERRORS as error:
                clear_frames(error.__traceback__)
                self.save_last()
                self.say(f"stopped after step {self.step}: {self.advice} resumes")
                raise
            except Diverged:
                raise
            except Exception as error:
                clear_frames(error.__traceback__)  # with the memory and the files that they hold
                self.rescue()
                raise

    @property
    def advice(self) -> str:
        """How the run is resumed."""
        return "the same command" if self.start.is_auto else f"--checkpoint={self.path / 'last.pt'}"

    def rescue(self) -> None:
        """Save what there is after an error that the other ranks may know nothing of; say so.

        Rank 0 writes it alone, where it has all of it: not where the class layer is split, or the
        ranks have means of an epoch each. Between the first changed weight and the count of its
        step there is nothing to save: the checkpoint from before stays. So does one from before a
        test, which is repeated then. Nothing is raised.
        """
        if not self.machine.world.is_main:
            return
        is_lone = self.machine.world.size == 1
        is_here = is_lone or not (self.learner.split_parameters() or self.epoch.num_steps)
        with contextlib.suppress(OSError):  # of the log: its disk may be full
            try:
                if is_here and self.learner.is_whole and self._saved[0] != self.step:
                    self.save("last", is_alone=True)
            except Exception as error:
                self.say(f"step {self.step} cannot be saved: {' '.join(str(error).split())}")

        with contextlib.suppress(OSError):
            if self._saved[0] == self.step:
                self.say(f"stopped after step {self.step}: {self.advice} resumes")
            elif (self.path / "last.pt").exists():
                self.say(f"stopped after step {self.step}: {self.advice} resumes from before it")

    def batches(self) -> Iterable[Batch]:
        """Return this process's batches from the present step on; ranks agree to take each."""
        seed, steps = self.machine.seed, range(self.step, self.options.schedule.total_iter_num)
        loader: ImageLoader | FeatureBatches
        if self.frozen is not None:
            loader = self.frozen.batches(self.train_set.labels, self.sampler, seed, steps)
        else:
            loader = train_loader(
                self.train_set,
                self.sampler,
                self.preprocessing,
                start_step=steps.start,
                end_step=steps.stop,
                seed=seed,
                num_workers=self.machine.num_workers,
                pin_memory=self.machine.device.type == "cuda",
                reading=self.options.reading.reading,
            )

        if self.machine.world.size == 1:
            return loader
        return self.stop.agreed(loader, lambda batch: self.broken.add(batch.broken))

    def progress_bar(self) -> tqdm[Any]:
        """Return a bar of the steps, on the first process and a terminal."""
        return tqdm(
            total=self.options.schedule.total_iter_num,
            initial=self.step,
            disable=None if self.machine.world.is_main else True,
            unit="step",
            leave=False,
        )

    def num_epochs(self, step: int) -> int:
        """Return how many epochs are done after a step."""
        return step * self.options.batches.train_batch_size // self.options.schedule.epoch_size

    def settle(self, at_most: int = 0) -> None:
        """Ask what steps found, until it is open of `at_most`: add it up, or skip or stop."""
        while len(self.outcomes) > at_most:
            step, outcome = self.outcomes.popleft()
            if not outcome.is_finite():
                self.num_skipped += 1
                self.skip_or_stop(step)
                continue
            self.num_skipped = 0
            self.meter.add(outcome.figures)
            if self.options.run.log_epochs:
                self.epoch.add(outcome.figures)

    def write_line(self, rate: float) -> None:
        """Write the reference's training line, and warn where the embeddings have collapsed."""
        self.settle()
        if self.meter.num_steps == 0:
            return
        num_images = self.meter.num_steps * self.options.batches.train_batch_size
        means, seconds = self.meter.flush()
        spread = means.pop("spread")
        self.foresee(seconds)

        self.say(training_line(self.step, rate, means, seconds, self.progress()))
        per_second = {"images_per_second": self.options.batches.train_batch_size / seconds}
        self.folder.record("train", self.step, lr=rate, **means, spread=spread, **per_second)

        class_dim = self.options.loss.class_dim
        guesses = guesses_of(self.learner.criterion, class_dim)
        self.say_all(self.watch.judge_classes(means, num_images, guesses, class_dim))
        self.say_all(self.watch.judge(means, spread, num_images))
        if self.frozen is None:
            self.say_all(self.pace.reading_caveats(means["wait"], self.machine))

    def foresee(self, seconds: float) -> None:
        """Take the seconds of a step for its pace, and warn, once, where the end is days away."""
        self.pace.step_seconds = seconds
        self.say_all(self.pace.caveats(self.step))

    def progress(self) -> str:
        """Say how far the run is, and when it ends."""
        total = self.options.schedule.total_iter_num
        return progress(self.step, total, self.pace.seconds_left(self.step))

    def say_all(self, lines: Iterable[str]) -> None:
        """Say some lines, if any."""
        for line in lines:
            self.say(line)

    def skip_or_stop(self, step: int) -> None:
        """Go on after a step that was not finite if the scale of float16 may be why, or raise."""
        scaler = self.learner.scaler
        if not scaler.is_enabled() or self.num_skipped > MOST_SKIPPED:
            raise self.diverged(step, self.list_images(step))
        scale = f"scale of the loss {scaler.get_scale():g}"
        self.say(f"step {step} skipped: not finite in float16; {scale}")

    def list_images(self, step: int) -> str:
        """Write the images of a step to the run folder, and return a pointer to them."""
        world = self.machine.world
        whose = f"_rank_{world.rank}" if world.size > 1 else ""
        if not self.path.is_dir():  # on another node, whose disk is another
            return ""
        path = self.path / f"step_{step}_images{whose}.txt"
        images = self.sampler.batch(step - 1)
        write_text(path, "".join(f"{self.train_set.paths[i]}\n" for i in images))
        return f"its images: {path}; "

    def diverged(self, step: int, images: str = "") -> Diverged:
        """Return the error of a run whose loss, gradients or weights are not finite at a step."""
        last = self.path / "last.pt"
        advice = f"; --checkpoint={last} is from before" if last.exists() else ""
        rate = self.options.schedule.lr
        return Diverged(
            f"the training diverged at step {step}: the loss, a gradient or a weight is NaN or "
            f"infinite; {images}lower --lr (it was {rate:g}) or give --clip_grad_norm{advice}"
        )

    def test(self) -> dict[str, float]:
        """Evaluate the test split: retrieval, and accuracy where the class layer knows its classes.

        Raises Stopped where the run is to stop; nothing of the test is written.
        """
        assert self.test_set is not None
        machine, started = self.machine, time.perf_counter()
        embeddings = self.embed_test()
        scores = score_images(self.test_set, embeddings, machine.device, world=machine.world)
        metrics = decide_on_main(
            machine.world, lambda: summarise(scores) | self.score_classes(embeddings)
        )

        self.tested = self.step
        self.watch.note_test(scores, is_start=self.step == 0 and self.options.watch.test_start)
        self.pace.test_seconds = time.perf_counter() - started
        recall = metrics["recall@1"]
        num_images = len(self.test_set)
        self.say(f"test_img_num {num_images}, trainbatch {self.step}, test_recall {recall:.5f}")
        chance = chances(self.test_set, metrics)
        self.say(
            f"recall@1_chance {chance['recall@1_chance']:.5f}, "
            f"time {self.pace.test_seconds:.2f} sec, {self.progress()}"
        )
        queries = int(self.test_set.is_query.sum())
        self.say_all(at_chance(recall, chance["recall@1_chance"], queries))
        self.folder.record("test", self.step, **metrics, **chance)
        self.folder.keep_scores(scores)
        self.folder.show(self.step, "neighbours", lambda: self.draw_neighbours(embeddings))
        return metrics

    def draw_neighbours(self, embeddings: np.ndarray) -> np.ndarray:
        """Draw some queries of the test split with what they find by embeddings (N, D)."""
        from metric_learning.engine.evaluate.neighbours import picture_of_neighbours  # matplotlib

        assert self.test_set is not None
        decoding, seed = self.preprocessing.decoding, self.machine.seed
        return picture_of_neighbours(self.test_set, embeddings, decoding, seed)

    def embed_test(self) -> np.ndarray:
        """Return the embeddings (N, D) of the test split; Stopped where the run is to stop."""
        assert self.test_set is not None
        model = self.learner.tested_model
        machine = replace(self.machine, amp_dtype=None, tf32=False)  # tests compute in float32
        share_buffers(model, machine.world)
        if self.frozen is not None:
            with self.stop.agreement():
                return self.frozen.embed_test(model, machine)

        return embed_images(
            model,
            self.test_set,
            self.preprocessing,
            machine,
            self.options.run.test_batch_size,
            log=self.say,
            log_every=self.options.run.display_iter_step,
            stop=self.stop,
        )

    def score_classes(self, embeddings: np.ndarray) -> dict[str, float]:
        """Return loss and accuracies of the test split, see `classify`, or nothing."""
        assert self.test_set is not None
        layer = class_layer_of(self.learner.criterion)
        names = list(self.train_set.class_names.values())
        numbers = None if layer is None else class_numbers(self.test_set, len(names), names)
        if numbers is None:
            return {}
        with evaluation_mode(layer):
            return classify(layer, embeddings, numbers, self.options.run.test_batch_size)

    def keep_best(self, recall: float) -> None:
        """Save best.pt where a Recall@1 of the present step is the best so far.

        At the end that is what last.pt is to hold too, and a copy costs less.
        """
        if recall > self.best.get("recall@1", -1.0):
            self.best = {"recall@1": recall, "step": self.step}
            self.save("best", *(["last"] if self.num_steps_left == 0 else []))

    def write_epoch(self, metrics: Mapping[str, float]) -> None:
        """Write the line of the epoch that is done: the means over its steps, and its test.

        A test without classes that are known has its Recall@1 instead of accuracy and loss.
        """
        means = self.epoch.flush()[0] if self.epoch.num_steps else {}
        if "loss_cls" in means and "loss" in metrics:  # of a joint loss, the part that is tested
            means["loss"] = means["loss_cls"]
        names = ("acc1", "loss") if "acc1" in metrics else ("recall@1",)
        tested = {name: metrics[name] for name in names}
        figures = {
            f"{when} {shown}": found[name]
            for when, found in (("train", means), ("test", tested))
            for name, shown in EPOCH_NAMES.items()
            if name in found
        }

        epoch = self.num_epochs(self.step)
        if "test recall" in figures and self.test_set is not None:
            figures["chance"] = chances(self.test_set, ["recall@1"])["recall@1_chance"]
        line = ", ".join(f"{name}: {round(value, 6):<8}" for name, value in figures.items())
        self.say(f"epoch: {epoch:>3}, {line}")
        named = {name.replace(" ", "_"): value for name, value in figures.items()}
        self.folder.record("epoch", self.step, epoch=epoch, **named)

    def checkpoint(self) -> dict[str, Any]:
        """Return all that a resumed run needs, whole on rank 0; all ranks call it."""
        loss_options = self.meta["loss_options"] | scale_options(self.learner.criterion)
        flags = dict(self.options.flags)

        return {
            **self.learner.state(),
            "step": self.step,
            "best": self.best,
            "tested": self.tested,
            "epoch": self.epoch.state(),
            "start": self.watch.state(),
            **({"course": self.course.state()} if self.course.is_steered else {}),
            "meta": {**self.meta, "loss_options": loss_options, "step": self.step, "flags": flags},
        }

    def save(self, *names: str, is_alone: bool = False) -> None:
        """Save checkpoints NAME.pt and, of the best and the last, the bare NAME.safetensors.

        All ranks call it together, or rank 0 `is_alone`. Raises Diverged where the weights are not
        finite, OSError where a file cannot be written; what was there still is.
        """
        self.settle()
        if not self.learner.is_finite():
            raise self.diverged(self.step)
        checkpoint = self.checkpoint()
        if is_alone:
            self._write(checkpoint, names)
        else:
            decide_on_main(self.machine.world, lambda: self._write(checkpoint, names))
        if "last" in names:
            self._saved = self.step, self.tested

    def _write(self, checkpoint: dict[str, Any], names: tuple[str, ...]) -> None:
        bare = [name for name in names if not name.startswith("step_")]
        try:
            for name in names:
                if name in bare:  # before NAME.pt, with which a run resumes
                    weights = self.path / f"{name}.safetensors"
                    if name == bare[0]:
                        save_weights(self.learner.tested_model, weights, checkpoint["meta"])
                    else:
                        copy_checkpoint(self.path / f"{bare[0]}.safetensors", weights)

                if name == names[0]:
                    save_checkpoint(self.path / f"{name}.pt", checkpoint)
                else:
                    copy_checkpoint(self.path / f"{names[0]}.pt", self.path / f"{name}.pt")

        except OSError as error:
            raise OSError(
                f"cannot write {error.filename} ({error.strerror}): make room; the checkpoints "
                "that were written before are whole"
            ) from error
        prune(self.path, self.options.run.keep, self.step)

    def save_last(self) -> None:
        """Save last.pt, unless one holds this step and its test."""
        if self._saved != (self.step, self.tested):
            self.save("last")

    def finish(self) -> None:
        """Save the end of the run, and say what it came to."""
        self.broken.report(self.machine.world)
        self.save_last()
        if self.best:
            step = self.best["step"]
            self.say(f"best test_recall {self.best['recall@1']:.5f} at step {step}")
        if self.step > 0:
            lines, record = self.watch.outcome(self.machine.seed)
            self.say_all(lines)
            if record:
                self.folder.record("comparison", self.step, **record)
        self.say(f"run folder: {self.path}")
