"""The one training loop of both stages: all that happens, in the order in which it happens."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from metric_learning.common.flags import Flags
from metric_learning.common.log import log
from metric_learning.engine.options.parts import ScheduleOptions
from metric_learning.engine.parallel.world import join_world, leave_world
from metric_learning.engine.run.run_folder import link_latest
from metric_learning.engine.run.signals import Stopped, noted_signals
from metric_learning.engine.train.needs import memory_caveats
from metric_learning.engine.train.run import TrainingRun
from metric_learning.engine.train.stages import Stage
from metric_learning.engine.train.start import announce, start_run
from metric_learning.engine.train.step import Outcome, Step
from metric_learning.models import EmbeddingModel
from metric_learning.reader.batches.loader import Batch

TELLING = 3  # the step that tells how long the run will take; the ones before it warm up


def train(flags: Flags, stage: Stage) -> Path:
    """Run a training of a stage, from its start or from where it resumes; return its folder."""
    world = join_world()
    with noted_signals(world) as stop:
        run = start_run(flags, stage, world, stop)
        options, learner = run.options, run.learner
        if is_finished(run):
            leave_world(world)
            return run.path

        every, updates = options.run, (options.batches, options.machine, options.optimizer)
        step = Step(learner, stage.loss, run.preprocessing, *updates)
        set_train_mode(learner.model, options.optimizer.freeze_bn, learner.is_on_features)
        caveats = memory_caveats(step, options.model.image_size, run.num_steps_left)
        with run.kept():
            announce(run)
            run.say_all(caveats)
            batches = begin(run, step)
            if is_test_due(run):  # the start, the run was stopped in this test, or no step is to do
                test(run)

            run.meter.restart_clock()
            bar = run.progress_bar()
            for batch in batches:
                if run.course.is_over:
                    break
                take(run, batch)
                rate = rate_at(options.schedule, run.step, run.course.rate)
                set_rate(learner.optimizer, rate)
                outcome = step(batch, run.step)

                count(run, outcome)
                bar.update()
                if is_due(run.step, every.display_iter_step):
                    run.write_line(rate)
                if is_due(run.step, every.save_iter_step) or ends_epoch(run):
                    run.save(f"step_{run.step}", "last")  # before what may fail
                if is_test_due(run):
                    test(run)
                run.meter.restart_clock()
            bar.close()
            run.finish()
    leave_world(world)
    return run.path


def begin(run: TrainingRun, step: Step) -> Iterable[Batch]:
    """Return the batches to come; on the first of them stage 2 measures its start, and says it."""
    if run.step > 0 or run.num_steps_left == 0:
        return run.batches()
    batches = run.watch.begin(step, run.batches(), run.num_steps_left)
    run.say_all(run.watch.describe_start())
    return batches


def take(run: TrainingRun, batch: Batch) -> None:
    """Stop where a signal asks for it, as ranks do in `TrainingRun.batches`; note the batch."""
    run.meter.add_wait()
    if run.options.machine.world.size == 1 and run.stop.received:
        raise Stopped(run.stop.received)
    if batch.broken:
        run.broken.add(batch.broken)


def count(run: TrainingRun, outcome: Outcome) -> None:
    """Count a step, and what the one before it found: the device has the new one in its queue."""
    run.step += 1
    run.learner.is_whole = True
    run.outcomes.append((run.step, outcome))
    run.settle(at_most=1)
    if run.meter.num_steps == TELLING and not run.pace.step_seconds:
        run.foresee(run.meter.last_seconds)


def test(run: TrainingRun) -> None:
    """Test the network as it stands; write the epoch that ends here, and keep the best network."""
    if run.frozen is None:  # else the steps took less time than saving does
        run.save_last()  # before what may fail
    metrics = run.test()
    if ends_epoch(run):
        run.write_epoch(metrics)
        run.say(f"Saved a model checkpoint at {run.path / f'step_{run.step}'}.pt")
    run.say_all(run.course.note(metrics["recall@1"]))
    run.keep_best(metrics["recall@1"])


def is_due(step: int, every: int) -> bool:
    """Whether something done every so many steps is to be done now; 0 is never."""
    return bool(every) and step > 0 and step % every == 0


def ends_epoch(run: TrainingRun) -> bool:
    """Whether the step that is done is the last of an epoch, with --log_epochs."""
    if not run.options.run.log_epochs or run.step == 0:
        return False
    return run.num_epochs(run.step) > run.num_epochs(run.step - 1)


def is_test_due(run: TrainingRun) -> bool:
    """Whether the step that is done is to be tested, as the last is, and has not been."""
    every, is_end = run.options.run.test_iter_step, run.step >= run.options.schedule.total_iter_num
    is_one = (bool(every) and is_end) or is_due(run.step, every) or ends_epoch(run)
    is_one = is_one or (run.options.watch.test_start and run.step == 0)
    return run.tested < run.step and is_one


def is_finished(run: TrainingRun) -> bool:
    """Whether --checkpoint=auto finds all steps done and the last one tested; says so."""
    is_last = Path(run.start.checkpoint or "").name == "last.pt"
    is_done = run.step >= run.options.schedule.total_iter_num and not is_test_due(run)
    is_done = is_done or run.course.is_over
    if not (run.start.is_auto and is_last and is_done):
        return False
    if run.machine.world.is_main:
        link_latest(run.path)
        log(f"{run.path} has finished its {run.step} steps: nothing to do")
    return True


def rate_at(schedule: ScheduleOptions, step: int, lowered: float | None = None) -> float:
    """Return the learning rate of the update that follows `step` completed ones.

    It begins with --lr, or with what tests have `lowered` that to.
    The first `warmup_iter_num` updates rise linearly to the rate of the schedule, which a cosine
    begins after them; the boundaries of piecewise decay are counted from step 0.
    """
    warmup = schedule.warmup_iter_num
    first = schedule.lr if lowered is None else lowered
    rate = float(first * min(1.0, (step + 1) / (warmup + 1)))
    if schedule.lr_strategy == "piecewise_decay":
        num_passed = sum(step >= boundary for boundary in schedule.lr_steps)
        return float(rate * schedule.lr_gamma**num_passed)
    if schedule.lr_strategy == "cosine_decay" and step >= warmup:
        progress = (step - warmup) / max(1, schedule.total_iter_num - warmup)
        return float(rate * 0.5 * (1 + math.cos(math.pi * progress)))
    return rate


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of every parameter group to `rate` times its multiplier."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_mult"]


def set_train_mode(model: EmbeddingModel, freeze_bn: bool, is_frozen: bool = False) -> None:
    """Put a model in training mode; with `freeze_bn` batch norm of its backbone does not learn.

    That of --feature_norm=bnneck learns its statistics nevertheless, since it starts without any.
    A backbone that `is_frozen` is in evaluation mode as a whole.
    """
    model.train()
    if is_frozen:
        model.backbone.eval()
    if freeze_bn:
        for module in model.backbone.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
