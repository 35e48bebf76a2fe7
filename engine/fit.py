"""The one training loop of both stages."""

from __future__ import annotations

import math
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from engine.checkpoints import load_checkpoint, prune, save_checkpoint
from engine.devices import choose_amp
from engine.distributed import (
    World,
    average,
    decide_on_main,
    leave_world,
    share_buffers,
    wrap,
)
from engine.inference import embed_index
from engine.reading import BrokenImages, reading_of
from engine.run import Run, choose_folder
from engine.schedules import learning_rate, set_learning_rate
from engine.scoring import score_index
from engine.setup import MakeSampler, Training, set_up
from models import save_weights
from reader import ImageError
from reader.device import to_inputs
from reader.loader import train_loader
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
    """
    training = set_up(args, given, make_sampler)
    folder = decide_on_main(training.world, lambda: choose_folder(args, given))
    run = Run(folder, args, training.world.is_main, training.step)
    training.best = best_so_far(folder, training.best)
    try:
        describe(training, run)
        fit(training, run, compute_loss)
        if training.best:
            best = training.best
            run.log(f"best test_recall {best['recall@1']:.5f} at step {best['step']}")
        run.log(f"run folder: {run.folder}")
    except ImageError:
        save(training, run, "last")
        run.log(f"stopped after step {training.step}: --checkpoint={folder / 'last.pt'} resumes")
        raise
    finally:
        run.close()
        leave_world()
    return run.folder


def best_so_far(folder: Path, best: dict[str, float]) -> dict[str, float]:
    """Return the better of `best` and what the folder's best.pt says, which is not to be lost."""
    path = folder / "best.pt"
    kept = load_checkpoint(path)["best"] if path.exists() else {}
    return max(best, kept, key=lambda test: test.get("recall@1", -1.0))


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
    if training.step:
        run.log(f"resuming {args.checkpoint} after step {training.step}")


def fit(training: Training, run: Run, compute_loss: ComputeLoss) -> None:
    """Train from the step that `training` stands at to the last; test, log and save on the way.

    Args:
        training: model, loss, data, optimizer and flags; changed in place.
        run: where to write.
        compute_loss: the step of the stage.

    Raises:
        ValueError: the loss is no longer finite, or an image cannot be read.
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
        reading=reading_of(args),
    )
    broken = BrokenImages(training.train_index, run.log)
    set_train_mode(network, args.freeze_bn)
    window = Window(world)
    progress = tqdm(
        total=args.total_iter_num,
        initial=training.step,
        disable=None if world.is_main else True,
        unit="step",
        leave=False,
    )
    for batch in loader:
        broken.add(batch.broken)
        rate = learning_rate(args, training.step)
        set_learning_rate(training.optimizer, rate)
        images = to_inputs(batch, training.preprocessing, device)  # Bx3xSxS
        labels = batch.labels.to(device, non_blocking=True)  # B
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
        if is_due(training.step, args.test_iter_step):
            test(training, run)
        if is_due(training.step, args.save_iter_step):
            save(training, run, f"step_{training.step}", "last")
        window.restart_clock()
    progress.close()
    broken.report(world)
    if args.test_iter_step and not is_due(training.step, args.test_iter_step):
        test(training, run)
    save(training, run, "last")


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


class Window:
    """Means of the loss and its figures over the steps since the last log line, and their time."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._sums: dict[str, Tensor] = {}
        self._steps = 0
        self._seconds = 0.0
        self._mark = time.perf_counter()

    def add(self, values: dict[str, Tensor]) -> None:
        """Add the scalars of one step; they stay on the device until `flush`."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value
        self._steps += 1
        self._count_time()

    def _count_time(self) -> None:
        now = time.perf_counter()
        self._seconds += now - self._mark
        self._mark = now

    def restart_clock(self) -> None:
        """Leave out the time since the last step: it was spent on tests and checkpoints."""
        self._mark = time.perf_counter()

    def flush(self) -> tuple[dict[str, float], float]:
        """Return the means over all ranks and the seconds per step, and begin anew."""
        means = average(torch.stack(list(self._sums.values())) / self._steps, self._world).tolist()
        self._count_time()  # reading the sums waited for the device
        named = dict(zip(self._sums, means, strict=True))
        seconds = self._seconds / self._steps
        self._sums, self._steps, self._seconds = {}, 0, 0.0
        return named, seconds


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


def test(training: Training, run: Run) -> None:
    """Evaluate the test split; where Recall@1 is the best so far, save it as best.pt."""
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
    )
    scores = score_index(index, embeddings, training.device, world=training.world)
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
    """
    if not all(bool(parameter.isfinite().all()) for parameter in training.model.parameters()):
        raise diverged(training, run)
    if not run.is_main:
        return
    checkpoint = training.checkpoint()
    for name in names:
        save_checkpoint(run.folder / f"{name}.pt", checkpoint)
        if not name.startswith("step_"):
            path = run.folder / f"{name}.safetensors"
            save_weights(training.model, path, checkpoint["meta"])
    prune(run.folder, training.args.keep)
