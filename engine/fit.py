"""The one training loop of both stages."""

from __future__ import annotations

import time
from argparse import Namespace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from engine.checkpoints import load_checkpoint, prune, save_checkpoint
from engine.distributed import (
    World,
    average,
    decide_on_main,
    leave_world,
    share_buffers,
)
from engine.inference import embed_index
from engine.run import Run, choose_folder
from engine.schedules import learning_rate, set_learning_rate
from engine.scoring import score_index
from engine.setup import MakeSampler, Training, set_up
from engine.update import ComputeLoss, Outcome, Updater
from models import save_weights
from models.atomic import write_text
from reader import ImageError
from reader.loader import train_loader
from retrieval.metrics import summarise

COLLAPSED = 1e-4  # spread of the embeddings below which they are all but one point
MOST_SKIPPED = 20  # steps in a row, after which no scale of float16 will help


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
        ValueError: the loss or a gradient is not finite, or an image cannot be read.
    """
    args, world = training.args, training.world
    updater = Updater(training, compute_loss)
    loader = train_loader(
        training.train_index,
        training.sampler,
        training.preprocessing,
        start_step=training.step,
        end_step=args.total_iter_num,
        seed=args.seed,
        num_workers=args.num_workers,
        pin_memory=training.device.type == "cuda",
    )
    set_train_mode(training.model, args.freeze_bn)
    num_skipped = 0
    window = Window(world)
    progress = tqdm(
        total=args.total_iter_num,
        initial=training.step,
        disable=None if world.is_main else True,
        unit="step",
        leave=False,
    )
    for images, labels in loader:
        rate = learning_rate(args, training.step)
        set_learning_rate(training.optimizer, rate)
        outcome = updater.update(images, labels)
        num_skipped = 0 if outcome.is_finite else num_skipped + 1
        if num_skipped:
            skip_or_stop(training, run, num_skipped)
        training.step += 1
        window.add(outcome)
        progress.update()
        if training.step % args.display_iter_step == 0:
            write_line(training, run, window, rate)
        if is_due(training.step, args.test_iter_step):
            test(training, run)
        if is_due(training.step, args.save_iter_step):
            save(training, run, f"step_{training.step}", "last")
        window.restart_clock()
    progress.close()
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

    def add(self, outcome: Outcome) -> None:
        """Add the scalars of one step; they stay on the device until `flush`."""
        for name, value in {**outcome.figures, "spread": outcome.spread}.items():
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
    """Write the reference's training line, and warn where the embeddings have collapsed."""
    means, seconds = window.flush()
    spread = means.pop("spread")
    # v1's line has the parts of a joint loss instead of the loss.
    shown = {name: means[name] for name in means if name != "loss" or "loss_metric" not in means}
    figures = ", ".join(
        f"{name} {value:.{6 if name.startswith('loss') else 4}f}" for name, value in shown.items()
    )
    run.log(f"trainbatch {training.step}, lr {rate:.6f}, {figures}, time {seconds:.2f} sec")
    images_per_second = training.args.train_batch_size / seconds
    run.record(
        "train",
        training.step,
        lr=rate,
        **means,
        spread=spread,
        images_per_second=images_per_second,
    )
    if spread < COLLAPSED:
        run.log(
            f"the embeddings have collapsed: all but one point (spread {spread:.1e}); they seldom "
            "recover: lower --lr, or start from the end of stage 1"
        )


def skip_or_stop(training: Training, run: Run, num_skipped: int) -> None:
    """Go on after a step that was not finite where the scale of float16 may be why.

    Raises:
        ValueError: it is not, or many steps in a row were skipped.
    """
    if not training.scaler.is_enabled() or num_skipped > MOST_SKIPPED:
        raise diverged(training, run, training.step + 1, list_images(training, run))
    scale = training.scaler.get_scale()
    run.log(f"step {training.step + 1} skipped: not finite in float16; scale of the loss {scale:g}")


def list_images(training: Training, run: Run) -> str:
    """Write the images of the present step to the run folder, and return a pointer to them."""
    rank, size = training.world.rank, training.world.size
    whose = f"_rank_{rank}" if size > 1 else ""
    path = run.folder / f"step_{training.step + 1}_images{whose}.txt"
    images = training.sampler.batch(training.step)
    write_text(path, "".join(f"{training.train_index.paths[i]}\n" for i in images))
    return f"its images: {path}; "


def diverged(training: Training, run: Run, step: int, images: str = "") -> ValueError:
    """Return the error of a run whose loss, gradients or weights are not finite at a step."""
    last = run.folder / "last.pt"
    advice = f"; --checkpoint={last} is from before" if last.exists() else ""
    rate = training.args.lr
    return ValueError(
        f"the training diverged at step {step}: the loss, a gradient or a weight is NaN or "
        f"infinite; {images}lower --lr (it was {rate:g}) or give --clip_grad_norm{advice}"
    )


def test(training: Training, run: Run) -> None:
    """Evaluate the test split; where Recall@1 is the best so far, save it as best.pt."""
    args, index = training.args, training.test_index
    assert index is not None
    share_buffers(training.tested_model, training.world)
    embeddings = embed_index(
        training.tested_model,
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
        raise diverged(training, run, training.step)
    if not run.is_main:
        return
    checkpoint = training.checkpoint()
    for name in names:
        save_checkpoint(run.folder / f"{name}.pt", checkpoint)
        if not name.startswith("step_"):
            path = run.folder / f"{name}.safetensors"
            save_weights(training.tested_model, path, checkpoint["meta"])
    prune(run.folder, training.args.keep)
