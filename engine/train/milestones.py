"""What happens between the steps of a training: log lines, tests, checkpoints, and its failure."""

from __future__ import annotations

from typing import Any

import numpy as np

from metric_learning.common.atomic import write_text
from metric_learning.engine.embed.extract import evaluation_mode
from metric_learning.engine.embed.inference import embed_index
from metric_learning.engine.evaluate.classification import class_numbers, classify
from metric_learning.engine.evaluate.scoring import score_index
from metric_learning.engine.parallel.distributed import decide_on_main, share_buffers
from metric_learning.engine.run.checkpoints import prune, save_checkpoint
from metric_learning.engine.run.folder import Run
from metric_learning.engine.run.signals import StopRequest
from metric_learning.engine.train.criterion import class_layer_of
from metric_learning.engine.train.training import Training
from metric_learning.engine.train.window import Window
from metric_learning.models import save_weights
from metric_learning.retrieval.metrics import summarise

# Of the figures of training steps and tests, those in the line of an epoch, and their names there.
EPOCH_NAMES = {"acc1": "acc", "recall": "recall", "recall@1": "recall", "loss": "loss"}
COLLAPSED = 1e-4  # spread of the embeddings below which they are all but one point
MOST_SKIPPED = 20  # steps in a row, after which no scale of float16 will help


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
    run.record(
        "train",
        training.step,
        lr=rate,
        **means,
        spread=spread,
        images_per_second=training.args.train_batch_size / seconds,
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
    if not run.folder.is_dir():  # on another node, whose disk is another
        return ""
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


def after_step(training: Training, run: Run, stop: StopRequest) -> None:
    """Test, log the epoch of and save the step that is done, where that is due."""
    if is_test_due(training):
        metrics = test(training, run, stop)
        if ends_epoch(training):
            write_epoch(training, run, metrics)
        keep_best(training, run, metrics["recall@1"])
    name = f"step_{training.step}"
    if ends_epoch(training) or is_due(training.step, training.args.save_iter_step):
        save(training, run, name, "last")
    if ends_epoch(training):
        run.log(f"Saved a model checkpoint at {run.folder / name}.pt")


def is_test_due(training: Training) -> bool:
    """Whether the step is one that is tested, such as the last, and has not been."""
    args, step = training.args, training.step
    is_last = bool(args.test_iter_step) and step >= args.total_iter_num
    is_one = is_last or is_due(step, args.test_iter_step) or ends_epoch(training)
    return training.tested < step and is_one


def ends_epoch(training: Training) -> bool:
    """Whether the step that is done is the last of an epoch, with --log_epochs."""
    step = training.step
    is_last = step > 0 and training.num_epochs(step) > training.num_epochs(step - 1)
    return training.args.log_epochs and is_last


def is_due(step: int, every: int) -> bool:
    """Whether something done every so many steps is to be done now; 0 is never."""
    return bool(every) and step > 0 and step % every == 0


def test(training: Training, run: Run, stop: StopRequest) -> dict[str, float]:
    """Evaluate the test split: retrieval, and accuracy where the class layer knows its classes.

    Raises:
        Stopped: the run is to stop; nothing of the test is written.
    """
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
        stop=stop,
    )
    scores = score_index(index, embeddings, training.device, world=training.world)
    metrics = decide_on_main(
        training.world, lambda: summarise(scores) | score_classes(training, embeddings)
    )
    training.tested = training.step
    recall = metrics["recall@1"]
    run.log(f"test_img_num {len(index)}, trainbatch {training.step}, test_recall {recall:.5f}")
    run.record("test", training.step, **metrics)
    return metrics


def score_classes(training: Training, embeddings: np.ndarray) -> dict[str, float]:
    """Return loss and accuracies of the test split, see `classify`, or nothing."""
    layer, index = class_layer_of(training.criterion), training.test_index
    assert index is not None
    if layer is None:
        return {}
    names = list(training.train_index.class_names.values())
    numbers = class_numbers(index, len(names), names)
    if numbers is None:
        return {}
    with evaluation_mode(layer):
        return classify(layer, embeddings, numbers, training.args.test_batch_size)


def write_epoch(training: Training, run: Run, metrics: dict[str, float]) -> None:
    """Write the line of the epoch that is done: the means over its steps, and its test.

    A test without classes that are known has its Recall@1 instead of accuracy and loss.
    """
    means = training.epoch.flush()[0] if training.epoch.num_steps else {}
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
    epoch = training.num_epochs(training.step)
    line = ", ".join(f"{name}: {round(value, 6):<8}" for name, value in figures.items())
    run.log(f"epoch: {epoch:>3}, {line}")
    named = {name.replace(" ", "_"): value for name, value in figures.items()}
    run.record("epoch", training.step, epoch=epoch, **named)


def keep_best(training: Training, run: Run, recall: float) -> None:
    """Save best.pt where the Recall@1 of the present step is the best so far."""
    if recall > training.best.get("recall@1", -1.0):
        training.best = {"recall@1": recall, "step": training.step}
        save(training, run, "best")


def save(training: Training, run: Run, *names: str) -> None:
    """Save checkpoints NAME.pt and, of the best and the last, the bare NAME.safetensors.

    Of the numbered ones, step_N.pt, the newest `--keep` stay. All ranks call it together.

    Raises:
        ValueError: the weights are not finite; nothing is written.
        OSError: a file cannot be written; the one before it is still there.
    """
    states = [training.model.state_dict(), training.tested_model.state_dict()]
    values = [value for state in states for value in state.values() if value.is_floating_point()]
    if not all(bool(value.isfinite().all()) for value in values):
        raise diverged(training, run, training.step)
    if "last" in names:
        training.saved = training.step
    checkpoint = training.checkpoint()
    decide_on_main(training.world, lambda: write(training, run, checkpoint, names))


def write(training: Training, run: Run, checkpoint: dict[str, Any], names: tuple[str, ...]) -> None:
    """Write the files of `save`.

    Raises:
        OSError: a file cannot be written; the one before it is still there.
    """
    try:
        for name in names:
            if not name.startswith("step_"):  # before NAME.pt, with which a run resumes
                path = run.folder / f"{name}.safetensors"
                save_weights(training.tested_model, path, checkpoint["meta"])
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
