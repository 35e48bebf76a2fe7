"""What a training run is: its flags and its data. Whoever takes it up compares both.

A flag that is not listed here as harmless defines the result, and so do all flags to come.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metric_learning.common.fingerprint import Snapshot, find_changes, load_snapshot
from metric_learning.common.flags import shown
from metric_learning.engine.options.parts import ReadingOptions, ScheduleOptions
from metric_learning.engine.options.tables import ACCEPT
from metric_learning.engine.options.training import EARLIER, LENGTHS, default_transform
from metric_learning.losses import is_pml, loss_options
from metric_learning.models import image_size_of, read_metadata
from metric_learning.models.weights.fingerprint import RANDOM, hash_weights
from metric_learning.reader import ImageSet
from metric_learning.reader.batches.cache import CachePaths
from metric_learning.reader.sets.image_set import DECODER
from metric_learning.reader.sets.snapshots import snapshot_of

# Where a run writes and computes, what it shows, and what follows from the data.
HARMLESS = {
    *("config", "checkpoint", "model_save_dir", "run_name", "keep", "log_epochs", "log_to"),
    *("display_iter_step", "test_iter_step", "save_iter_step", "test_batch_size"),
    *("use_gpu", "device", "num_workers", "prefetch", "with_mem_opt", "compile", "max_pixels"),
    *("on_bad_image", "verify", "on_changed_data", "class_dim", "total_images"),
    *("on_collapse", "test_start", "features_dir"),
}
# Where data lies, which is compared by what it holds.
PLACES = {"data_dir", "csv", "train_list", "test_list", "teacher"}
FIRST = ("loss_name", "model", "dataset")  # whose options differ too
RECIPE_SKIPS = HARMLESS | PLACES | {"seed", "pretrained_model"}


@dataclass(frozen=True)
class Origin:
    """What a run is of beside its flags: its images, and the weights that it began with.

    Attributes:
        snapshots: split -> its images; of the test split only where the run tests.
        start: fingerprint of --pretrained_model, or None.
        start_recipe: what that was trained with, see `recipe_of`, or its fingerprint.
    """

    snapshots: Mapping[str, Snapshot]
    start: str | None = None
    start_recipe: str | None = None

    def facts(self) -> dict[str, Any]:
        """Return what a checkpoint records."""
        images = {split: snapshot.digest() for split, snapshot in self.snapshots.items()}
        weights = {"start": self.start, "start_recipe": self.start_recipe}
        return {**images, **weights, "decoder": DECODER}

    def save(self, folder: Path) -> None:
        """Write the snapshots into the run folder, so that a resume can name what has changed."""
        for split, snapshot in self.snapshots.items():
            snapshot.save(_snapshot_file(folder, split))


def find_origin(
    image_sets: Mapping[str, ImageSet],
    pretrained_model: str | None,
    reading: ReadingOptions,
    checkpoint: str | None,
    meta: Mapping[str, Any],
) -> Origin:
    """Find out what a run is of; what it began with is said by the checkpoint that it resumes.

    `meta` is that of the checkpoint, empty for a new run.
    """
    snapshots = {}
    for split, image_set in image_sets.items():
        known = _kept_snapshot(Path(checkpoint).parent, split) if checkpoint else None
        if known is None and split == "train" and reading.cache:
            known = _read_snapshot(CachePaths(Path(reading.cache)).images)
        snapshots[split] = snapshot_of(image_set, known, reading.verify)
    if checkpoint is not None:
        kept = meta.get("depends_on", {})
        return Origin(snapshots, kept.get("start"), kept.get("start_recipe"))
    if pretrained_model in (None, RANDOM):
        return Origin(snapshots)

    assert pretrained_model is not None
    start = hash_weights(pretrained_model)
    recipe = recipe_of(read_metadata(pretrained_model) or {})
    return Origin(snapshots, start, _hash_recipe(recipe) if recipe else start)


def _snapshot_file(folder: Path, split: str) -> Path:
    return folder / f"{split}_images.npz"


def _kept_snapshot(folder: Path, split: str) -> Snapshot | None:
    """Return the snapshot in a run folder, or None: without it changes are found, but not named."""
    return _read_snapshot(_snapshot_file(folder, split))


def _read_snapshot(file: Path) -> Snapshot | None:
    try:
        return load_snapshot(file)
    except (OSError, ValueError):
        return None


def check_flags(
    values: Mapping[str, Any], given: Set[str], path: str, meta: Mapping[str, Any]
) -> None:
    """Raise ValueError where --checkpoint=auto finds the run of another command at `path`.

    The `values` are those of the flags of this command. A flag counts where it is `given` now or
    was given then; a default of another version does not.
    """
    before, both = EARLIER | meta["flags"], given | set(meta.get("given", ()))
    skipped = HARMLESS | PLACES | LENGTHS | {"pretrained_model"}
    if values["on_changed_data"] == ACCEPT:
        skipped |= {"dataset", "train_classes", "test_classes", "fold", "val_fold"}

    for name in sorted(both - skipped, key=lambda name: (name not in FIRST, name)):
        if name not in before or name not in values:
            continue
        kept, found = _plain(name, before[name]), _plain(name, _value(values, name))
        if kept != found:
            default = "" if name in given else ", the default"
            raise ValueError(
                f"{path} was made with --{name}={shown(kept)}, found --{name}={shown(found)}"
                f"{default}: this is another run; leave the flag as it was, choose another "
                f"--run_name, or go on with other flags by --checkpoint={path}"
            )
    if "pretrained_model" in both:
        _check_weights(values["pretrained_model"], path, meta)


def _value(values: Mapping[str, Any], name: str) -> Any:
    """Return the value of a flag, or what follows where it was left open."""
    if values[name] is not None:
        return values[name]
    model, loss_name = values["model"], values["loss_name"]
    if name == "transform":
        return default_transform(model, loss_name)
    if name == "image_shape":
        return 3, *image_size_of(model)
    own = {} if is_pml(loss_name) else loss_options(loss_name)
    return own[name].default if name in own else None


def _plain(name: str, value: Any) -> Any:
    """Return what of a value counts: of --cache whether there is one."""
    if name == "cache":
        return value is not None
    return tuple(value) if isinstance(value, list) else value


def _check_weights(now: str | None, path: str, meta: Mapping[str, Any]) -> None:
    """Raise ValueError where a run began with other weights than --pretrained_model names `now`."""
    before, kept = meta["flags"].get("pretrained_model"), meta.get("depends_on", {}).get("start")
    is_other = before != now
    if kept is not None and now not in (None, RANDOM):
        with contextlib.suppress(FileNotFoundError):  # a run goes on without them
            is_other = hash_weights(str(now)) != kept
    if is_other:
        what = "another content" if before == now else f"--pretrained_model={now}"
        raise ValueError(
            f"{path} was made with --pretrained_model={before}, found {what}: this is another "
            f"run; choose another --run_name, or go on by --checkpoint={path}"
        )


def check_images(origin: Origin, path: str, meta: Mapping[str, Any], accepts: bool) -> list[str]:
    """Compare the images of a run with those of the checkpoint that it resumes.

    Returns lines about what has changed and is accepted, or was not compared; ValueError where
    something has changed.
    """
    kept = meta.get("depends_on")
    if kept is None:
        return [
            f"{path} is of an earlier version, which did not record images and given flags: they "
            "were not compared"
        ]
    return refuse_or_note(_find_differences(origin, Path(path).parent, kept), path, accepts)


def refuse_or_note(differences: list[str], path: str, accepts: bool) -> list[str]:
    """Return lines about differences that are accepted; ValueError where they are not."""
    if differences and not accepts:
        raise ValueError(
            f"{path} was trained on other data: {'; '.join(differences)}. Restore them, or choose "
            "another --run_name; --on_changed_data=accept goes on nevertheless"
        )
    return [f"other data than before, accepted: {text}" for text in differences]


def describe_classes(before: list[str], now: list[str]) -> str:
    """Say how the names of classes, in the order of their numbers, differ."""
    if len(before) != len(now):
        return f"{len(before)} training classes, not {len(now)}"
    old, new = next((a, b) for a, b in zip(before, now, strict=True) if a != b)
    return f"other training classes, the first {old}, not {new}"


def _find_differences(origin: Origin, folder: Path, kept: Mapping[str, Any]) -> list[str]:
    """Say how images differ from those that a checkpoint in a run folder records."""
    found = origin.facts()
    differences = []
    for split, snapshot in origin.snapshots.items():
        if kept.get(split) in (None, found[split]):
            continue
        earlier = _kept_snapshot(folder, split)
        changes = earlier and earlier.digest() == kept[split] and find_changes(earlier, snapshot)
        changes = changes or f"{kept[split]}, not {found[split]}"
        differences.append(f"images of the {split} split: {changes}")
    if kept.get("decoder") != DECODER:
        differences.append(f"another decoder of images ({kept.get('decoder')}, not {DECODER})")
    return differences


def check_teacher(now: str | None, path: str, meta: Mapping[str, Any]) -> None:
    """Raise ValueError where a run that is resumed has another teacher than it had, or lacks it.

    It is recognised by the fingerprint of its weights, `now` and in the `meta` of the checkpoint.
    """
    before = meta.get("teacher")
    if before != now:
        what = "without a --teacher" if before is None else "with a --teacher of other weights"
        raise ValueError(
            f"{path} was trained {what}: give what it had, or choose another --run_name"
        )


def check_length(schedule: ScheduleOptions, path: str, checkpoint: Mapping[str, Any]) -> list[str]:
    """Compare the length of a run with what a checkpoint has done, and was to do.

    Returns a line where the rest of the rates changes. Raises ValueError where it is too short.
    """
    num_steps, done = schedule.total_iter_num, checkpoint["step"]
    before = checkpoint["meta"]["flags"].get("total_iter_num")
    if num_steps < done:
        raise ValueError(
            f"{path} has done {done} steps, found a length of {num_steps} (--total_iter_num or "
            "--num_epochs): give as many or more, or go on from an earlier checkpoint"
        )
    if before in (None, num_steps) or schedule.lr_strategy != "cosine_decay":
        return []
    return [
        f"{num_steps} steps instead of {before}: from step {done} on, the rate follows the cosine "
        "of the new length"
    ]


def recipe_of(meta: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return all that weights were trained with but the seed, as JSON has it.

    None where their file, of which `meta` are the facts, does not say it.
    """
    kept = meta.get("depends_on")
    if not kept or "flags" not in meta or "train" not in kept:
        return None

    flags = {name: value for name, value in meta["flags"].items() if name not in RECIPE_SKIPS}
    recipe: dict[str, Any] = json.loads(
        json.dumps(
            {
                **{f"--{name}": _plain(name, value) for name, value in sorted(flags.items())},
                "steps": meta.get("step"),
                "training images": kept["train"],
                "decoder": kept.get("decoder"),
                "starting weights": kept.get("start_recipe"),
                **({"teacher": meta["teacher"]} if meta.get("teacher") else {}),
            }
        )
    )
    return recipe


def _hash_recipe(recipe: Mapping[str, Any]) -> str:
    text = json.dumps(recipe, sort_keys=True)
    return f"recipe sha256:{hashlib.sha256(text.encode()).hexdigest()[:32]}"
