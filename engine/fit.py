"""The one training loop of both stages."""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from engine.checkpoints import prune, save_checkpoint
from engine.devices import choose_amp
from engine.distributed import decide_on_main, join_world, leave_world, share_buffers, wrap
from engine.inference import embed_index
from engine.resume import best_so_far
from engine.run import Run, choose_folder, log
from engine.schedules import learning_rate, set_learning_rate
from engine.scoring import score_index
from engine.setup import MakeSampler, Training, set_up
from engine.signals import Stopped, StopRequest, noted_signals
from engine.window import Window
from models import save_weights
from reader import ImageError, WorkerError
from reader.loader import train_loader
from retrieval.extract import to_device
from retrieval.metrics import summarise

# Maps (criterion, embeddings, labels) to the loss and the figures of its log line, all scalars.
ComputeLoss = Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]]


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
    try:
        with noted_signals(world) as stop:
            training = set_up(args, given, make_sampler, world)
            folder = training.start.folder
            if folder is None:
                folder = decide_on_main(world, lambda: choose_folder(args, given))
            elif is_finished(training):
                if world.is_main:
                    log(f"{folder} has finished its {training.step} steps: nothing to do")
                return folder
            with Run(folder, args, world.is_main, training.step, training.tested) as run:
                train_to_the_end(training, run, compute_loss, stop)
            return folder
    finally:
        leave_world()


def train_to_the_end(
    training: Training, run: Run, compute_loss: ComputeLoss, stop: StopRequest
) -> None:
    """Train, and leave a last.pt that resumes where it is stopped or an image cannot be read."""
    resume = "the same command" if training.start.is_auto else f"--checkpoint={run.folder}/last.pt"
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
    is_done = training.step >= training.args.total_iter_num and not is_test_due(training)
    return is_done and Path(training.start.checkpoint or "").name == "last.pt"


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
        ValueError: the loss is no longer finite, or an image cannot be read.
        OSError: a file cannot be written, or a process that reads images was killed.
    """
    args, world, device = training.args, training.world, training.device
    amp_dtype = choose_amp(args.amp, device)
    network = wrap(training.model, world, device)
    criterion = wrap(training.criterion, world, device)
    loader = train_loader(
        training.train_index,
        training.sampler,
        training.preprocessing,
        start_step=training.step,
        end_step=args.total_iter_num,
        seed=args.seed,
        num_workers=args.num_workers,
        pin_memory=device.type == "cuda",
    )
    set_train_mode(network, args.freeze_bn)
    window = Window(world)
    progress = tqdm(
        total=args.total_iter_num,
        initial=training.step,
        disable=None if world.is_main else True,
        unit="step",
        leave=False,
    )
    if is_test_due(training):  # the run was stopped in this test, or there is no step to do
        after_step(training, run, stop)
    for images, labels in stop.batches(loader):
        rate = learning_rate(args, training.step)
        set_learning_rate(training.optimizer, rate)
        images = to_device(images, device)  # Bx3xSxS
        labels = labels.to(device, non_blocking=True)  # B
        with torch.autocast(device.type, dtype=amp_dtype, enabled=amp_dtype is not None):
            embeddings = network(images)  # BxD
        loss, figures = compute_loss(criterion, embeddings.float(), labels)
        training.optimizer.zero_grad()
        loss.backward()
        training.optimizer.step()
        training.step += 1
        window.add({"loss": loss.detach(), **figures})
        progress.update()
        if training.step % args.display_iter_step == 0:
            write_line(training, run, window, rate)
        after_step(training, run, stop)
        window.restart_clock()
    progress.close()
    save_last(training, run)


def after_step(training: Training, run: Run, stop: StopRequest) -> None:
    """Test and save the step that is done, where that is due."""
    if is_test_due(training):
        test(training, run, stop)
    if is_due(training.step, training.args.save_iter_step):
        save(training, run, f"step_{training.step}", "last")


def is_test_due(training: Training) -> bool:
    """Whether the step is one that is tested, such as the last, and has not been."""
    args, step = training.args, training.step
    is_last = bool(args.test_iter_step) and step >= args.total_iter_num
    return training.tested < step and (is_last or is_due(step, args.test_iter_step))


def is_due(step: int, every: int) -> bool:
    """Whether something done every so many steps is to be done now; 0 is never."""
    return bool(every) and step > 0 and step % every == 0


def set_train_mode(model: nn.Module, freeze_bn: bool) -> None:
    """Put a model in training mode; with `freeze_bn` batch norm keeps its statistics."""
    model.train()
    if freeze_bn:
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()


def write_line(training: Training, run: Run, window: Window, rate: float) -> None:
    """Write the reference's training line, and stop where the loss is no longer finite."""
    means, seconds = window.flush()
    figures = ", ".join(
        f"{name} {value:.{6 if name == 'loss' else 4}f}" for name, value in means.items()
    )
    run.log(f"trainbatch {training.step}, lr {rate:.6f}, {figures}, time {seconds:.2f} sec")
    images_per_second = training.args.train_batch_size / seconds
    run.record("train", training.step, lr=rate, **means, images_per_second=images_per_second)
    if not math.isfinite(means["loss"]):
        raise diverged(training, run)


def diverged(training: Training, run: Run) -> ValueError:
    """Return the error of a run whose loss or weights are no longer finite."""
    last = run.folder / "last.pt"
    advice = f"; --checkpoint={last} is from before" if last.exists() else ""
    rate = training.args.lr
    return ValueError(
        f"the training diverged by step {training.step}: the loss or a weight is NaN or infinite; "
        f"lower --lr (it was {rate:g}){advice}"
    )


def test(training: Training, run: Run, stop: StopRequest) -> None:
    """Evaluate the test split; where Recall@1 is the best so far, save it as best.pt.

    Raises:
        Stopped: the run is to stop; nothing of the test is written.
    """
    args, index = training.args, training.test_index
    assert index is not None
    share_buffers(training.model, training.world)
    embeddings = embed_index(
        training.model,
        index,
        training.preprocessing,
        batch_size=args.test_batch_size,
        num_workers=args.num_workers,
        device=training.device,
        world=training.world,
        log=run.log,
        log_every=args.display_iter_step,
        stop=stop,
    )
    scores = score_index(index, embeddings, training.device, world=training.world)
    training.tested = training.step
    if not run.is_main:
        return
    metrics = summarise(scores)
    recall = metrics["recall@1"]
    run.log(f"test_img_num {len(index)}, trainbatch {training.step}, test_recall {recall:.5f}")
    run.record("test", training.step, **metrics)
    if recall > training.best.get("recall@1", -1.0):
        training.best = {"recall@1": recall, "step": training.step}
        save(training, run, "best")


def save(training: Training, run: Run, *names: str) -> None:
    """Save checkpoints NAME.pt and, of the best and the last, the bare NAME.safetensors.

    Of the numbered ones, step_N.pt, the newest `--keep` stay.

    Raises:
        ValueError: the weights are not finite; nothing is written.
        OSError: a file cannot be written; the one before it is still there.
    """
    if not all(bool(parameter.isfinite().all()) for parameter in training.model.parameters()):
        raise diverged(training, run)
    if "last" in names:
        training.saved = training.step
    if not run.is_main:
        return
    checkpoint = training.checkpoint()
    try:
        for name in names:
            if not name.startswith("step_"):  # before NAME.pt, with which a run resumes
                path = run.folder / f"{name}.safetensors"
                save_weights(training.model, path, checkpoint["meta"])
            save_checkpoint(run.folder / f"{name}.pt", checkpoint)
    except OSError as error:
        raise OSError(
            f"cannot write {error.filename} ({error.strerror}): make room; the checkpoints that "
            "were written before are whole"
        ) from error
    prune(run.folder, training.args.keep, training.step)


def save_last(training: Training, run: Run) -> None:
    """Save last.pt, unless it was saved after this step."""
    if training.saved < training.step:
        save(training, run, "last")
