"""The one training loop of both stages."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from metric_learning.common.log import log
from metric_learning.engine.parallel.distributed import (
    ComputeLoss,
    decide_on_main,
    join_world,
    leave_world,
)
from metric_learning.engine.run.folder import Run, choose_folder
from metric_learning.engine.run.resume import best_so_far
from metric_learning.engine.run.signals import Stopped, StopRequest, noted_signals
from metric_learning.engine.train.milestones import (
    after_step,
    is_test_due,
    save_last,
    skip_or_stop,
    write_line,
)
from metric_learning.engine.train.reading import BrokenImages, reading_of
from metric_learning.engine.train.schedules import learning_rate, set_learning_rate
from metric_learning.engine.train.setup import MakeSampler, set_up
from metric_learning.engine.train.training import Training
from metric_learning.engine.train.update import Updater
from metric_learning.engine.train.window import Window
from metric_learning.models import EmbeddingModel
from metric_learning.reader import ImageError, WorkerError
from metric_learning.reader.batches.loader import ImageLoader, train_loader


def train(
    args: Namespace, given: set[str], make_sampler: MakeSampler, compute_loss: ComputeLoss
) -> Path:
    """Run a whole training from its flags and return the run folder.

    Args:
        args: a value per flag.
        given: names of the flags that the user gave.
        make_sampler: builds the sampler of the stage.
        compute_loss: the step of the stage.

    Raises:
        ValueError: a flag, a file or an image is wrong, or the training diverged.
        OSError: a file cannot be read or written, or a process that reads images was killed.
    """
    world = join_world()
    with noted_signals(world) as stop:
        training = set_up(args, given, make_sampler, world)
        folder = training.start.folder
        if folder is None:
            folder = decide_on_main(world, lambda: choose_folder(args, given))
        if training.start.is_auto and is_finished(training):
            if world.is_main:
                log(f"{folder} has finished its {training.step} steps: nothing to do")
        else:
            with Run(folder, args, world.is_main, training.step, training.tested) as run:
                train_to_the_end(training, run, compute_loss, stop)
    leave_world()
    return folder


def train_to_the_end(
    training: Training, run: Run, compute_loss: ComputeLoss, stop: StopRequest
) -> None:
    """Train, and leave a last.pt that resumes where it is stopped or an image cannot be read."""
    last = run.folder / "last.pt"
    resume = "the same command" if training.start.is_auto else f"--checkpoint={last}"
    training.best = decide_on_main(training.world, lambda: best_so_far(training.best, run))
    describe(training, run)
    try:
        fit(training, run, compute_loss, stop)
        if training.best:
            best = training.best
            run.log(f"best test_recall {best['recall@1']:.5f} at step {best['step']}")
        run.log(f"run folder: {run.folder}")
    except Stopped as signal:
        save_last(training, run)
        run.log(f"stopped by {signal} after step {training.step}: {resume} resumes")
    except (ImageError, WorkerError):
        save_last(training, run)
        run.log(f"stopped after step {training.step}: {resume} resumes")
        raise


def is_finished(training: Training) -> bool:
    """Whether the run goes on from its last.pt, with all steps done and the last one tested."""
    is_last = Path(training.start.checkpoint or "").name == "last.pt"
    is_done = training.step >= training.args.total_iter_num and not is_test_due(training)
    return is_last and is_done


def describe(training: Training, run: Run) -> None:
    """Log what is about to be trained, on what."""
    args = training.args
    index = training.train_index
    run.log(f"train: {args.dataset}, {len(index)} images of {index.num_classes} classes")
    if training.test_index is not None:
        index = training.test_index
        run.log(f"test: {len(index)} images of {index.num_classes} classes")
    if training.sampler.note:
        run.log(training.sampler.note)
    size = sum(parameter.numel() for parameter in training.model.parameters())
    run.log(
        f"{args.model}, {size / 1e6:.1f} million parameters, "
        f"{training.model.embedding_size}-d embeddings; {args.loss_name}, lr {args.lr:g}; "
        f"{training.device}, {training.world.size} process(es)"
    )
    for note in training.start.notes:
        run.log(note)
    if training.start.checkpoint:
        run.log(f"resuming {training.start.checkpoint} after step {training.step}")


def fit(training: Training, run: Run, compute_loss: ComputeLoss, stop: StopRequest) -> None:
    """Train from the step that `training` stands at to the last; test, log and save on the way.

    Args:
        training: model, loss, data, optimizer and flags; changed in place.
        run: where to write.
        compute_loss: the step of the stage.
        stop: whether a signal has asked for an end.

    Raises:
        Stopped: the run is to stop; what is due after the last step may not have been done.
        ValueError: the loss or a gradient is not finite, or an image cannot be read.
        OSError: a file cannot be written, or a process that reads images was killed.
    """
    args, world = training.args, training.world
    updater = Updater(training, compute_loss)
    loader = load_batches(training)
    broken = BrokenImages(training.train_index, run.log)
    set_train_mode(training.model, args.freeze_bn)
    window = Window(world)
    num_skipped = 0
    progress = progress_bar(training)
    if is_test_due(training):  # the run was stopped in this test, or there is no step to do
        after_step(training, run, stop)
    for batch in stop.agreed(broken.noted(loader), len(loader)):
        rate = learning_rate(args, training.step)
        set_learning_rate(training.optimizer, rate)
        outcome = updater.update(batch)
        num_skipped = 0 if outcome.is_finite else num_skipped + 1
        if num_skipped:
            skip_or_stop(training, run, num_skipped)
        training.step += 1
        if outcome.is_finite:
            window.add({**outcome.figures, "spread": outcome.spread})
            if args.log_epochs:
                training.epoch.add(outcome.figures)
        progress.update()
        if training.step % args.display_iter_step == 0 and window.num_steps:
            write_line(training, run, window, rate)
        after_step(training, run, stop)
        window.restart_clock()
    progress.close()
    broken.report(world)
    save_last(training, run)


def load_batches(training: Training) -> ImageLoader:
    """Return the loader of the batches of this process, from the present step to the last."""
    args = training.args
    return train_loader(
        training.train_index,
        training.sampler,
        training.preprocessing,
        start_step=training.step,
        end_step=args.total_iter_num,
        seed=args.seed,
        num_workers=args.num_workers,
        pin_memory=training.device.type == "cuda",
        reading=reading_of(args),
    )


def progress_bar(training: Training) -> tqdm:
    """Return a bar of the steps, on the first process and a terminal."""
    return tqdm(
        total=training.args.total_iter_num,
        initial=training.step,
        disable=None if training.world.is_main else True,
        unit="step",
        leave=False,
    )


def set_train_mode(model: EmbeddingModel, freeze_bn: bool) -> None:
    """Put a model in training mode; with `freeze_bn` batch norm of its backbone does not learn.

    That of --feature_norm=bnneck learns its statistics nevertheless, since it starts without any.
    """
    model.train()
    if freeze_bn:
        for module in model.backbone.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
