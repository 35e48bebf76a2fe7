"""Settles the options of a training: the one place where an option may depend on another one.

What the user gave wins; then what the checkpoint says that is resumed; then what the weights say
that the training starts from; then what follows from the data and the model; then the default.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import torch

from metric_learning.common.flags import Flags, shown
from metric_learning.common.log import log
from metric_learning.common.parameters import parse_options
from metric_learning.engine.options import parts
from metric_learning.engine.options.training_table import DERIVED_OPTIONS, SCRIPTS, is_own
from metric_learning.engine.parallel.devices import choose_amp, choose_device, reading_workers
from metric_learning.engine.parallel.world import World
from metric_learning.losses import (
    ELEM_LOSSES,
    FACE_LOSSES,
    PAIR_LOSSES,
    V1_LOSSES,
    is_pml,
    layout_of,
    loss_options,
    reads_raw,
    stage_of,
)
from metric_learning.losses.classes import fixed_scale
from metric_learning.losses.pairs import LabelLoss
from metric_learning.models import MODEL_OPTIONS, REFERENCE_MODELS, image_size_of, options_of
from metric_learning.reader import ImageSet
from metric_learning.reader.augment import Augmentation

DEFAULT_SAMPLES_EACH_CLASS = 2  # of a loss without such an option
IMAGES_PER_TRIPLE = 3
V1_EPOCH = 100  # batches
FACES = 10_000  # classes from which on the scale of losses for faces is their authors'
CLASS_DROPOUTS = {"SE_ResNeXt50_32x4d": 0.5}  # of the reference's class layer on a model, else 0
# What flags were before there were such flags, for checkpoints of then.
EARLIER = {
    "class_dropout": 0.0,
    "trainable": "all",
    "keep_loss": 0.0,
    "layer_decay": 1.0,
    "lora_rank": 0,
    "lr_of_start": 0.0,
    "test_resize": "short_side",
}

# Flags that a resumed run must have as its checkpoint has them.
FIXED_FLAGS = (
    *("model", "embedding_size", *MODEL_OPTIONS, "loss_name", "class_dim"),
    *("optimizer", "decay_norm_and_bias", "trainable", "layer_decay", "lora_rank"),
    *("alpha", "keep_loss", "xbm_size", "loss_options", "lr_of_start"),
    *("normalize_embeddings", "embedding_scale"),
)
LENGTHS = {"num_epochs", "total_iter_num"}
OF_THE_CALL = {"verify", "on_changed_data"}  # are given again where they are meant again
# Flags about images that are read in training, of which there are none where features are kept.
OF_READING = (
    *("cache", "cache_size", "augment_on", "decode_on", "on_bad_image", "prefetch"),
    *("freeze_bn", "sync_bn", "with_mem_opt"),
    *("layer_decay", "warm_head_steps", "drop_path", "teacher"),
)
BY_WORKERS = ("resize_first", "color_jitter", "rand_augment", "random_erasing")
VIEW_NAMES = ("tta_flip", "tta_scales")
FEATURES_DIR = "frozen_features"  # below --model_save_dir
# What a training at --lr_of_start takes over from another one, beside the rate; the factors are of
# weights that it may not have, unless it keeps the loss too.
OF_OPTIMIZER = (
    *("optimizer", "momentum", "nesterov", "adam_eps", "weight_decay", "decay_norm_and_bias"),
    "layer_decay",
)
RATE_FACTORS = ("lr_head_mult", "lr_loss_mult")
# How images become the input of a network.
PIPELINE = ("image_shape", "transform", "resize_ratio", "test_resize")


def adopt_v1(flags: Flags, world: World) -> Flags:
    """Make the batch of v1's README triples, and say what an epoch is with a loss of v1."""
    if flags.loss_name not in V1_LOSSES:
        return flags
    notes, batch_size = [], flags.train_batch_size
    if flags.loss_name == "tripletloss" and batch_size % IMAGES_PER_TRIPLE:
        number = math.ceil(batch_size / IMAGES_PER_TRIPLE)
        batch_size = IMAGES_PER_TRIPLE * number
        notes.append(f"--train_batch_size={batch_size}, for {number} whole triples")
    if flags.num_epochs or flags.log_epochs:
        notes.append(f"an epoch is {V1_EPOCH} batches, as in the reference's first version")

    for note in notes if world.is_main else ():
        log(note)
    return flags.replaced(train_batch_size=batch_size)


def facts_of_model(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a weights file says of its model: flag -> value, of those that it knows."""
    # Converted weights and those of hubs have no flags, exported ones those of the model.
    flags = EARLIER | meta["flags"] if "flags" in meta else meta
    named = {name: meta[name] for name in ("model", "embedding_size") if name in meta}
    pipeline = {name: plain(flags[name]) for name in PIPELINE if flags.get(name) is not None}
    return named | options_of(dict(meta)) | pipeline


def augmentation_of(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was done to the training images of a checkpoint: flag -> value."""
    flags, names = meta.get("flags", {}), Augmentation.__dataclass_fields__
    return {name: plain(flags[name]) for name in names if flags.get(name) is not None}


def rates_of(path: str, meta: Mapping[str, Any], share: float, goes_on: bool) -> dict[str, Any]:
    """Return the optimizer of a training and its rate times `share`, by flag.

    Where its loss `goes_on`, so do the factors of the rate of its weights. Raises ValueError where
    the weights do not say at which rate they were trained.
    """
    flags = meta.get("flags", {})
    if flags.get("lr") is None or "optimizer" not in flags:
        raise ValueError(
            f"--lr_of_start: {path} does not say at which rate it was trained: give --lr instead"
        )
    names = (*OF_OPTIMIZER, *(RATE_FACTORS if goes_on else ()))
    found = {name: plain(flags[name]) for name in names if flags.get(name) is not None}
    return found | {"lr": flags["lr"] * share}


def plain(value: Any) -> Any:
    """Return a value of a JSON file as the flag has it: tuples instead of lists."""
    return tuple(value) if isinstance(value, list) else value


def notes_on_weights(
    path: str | None, facts: Mapping[str, Any], values: Mapping[str, Any], given: Set[str]
) -> list[str]:
    """Say what a training takes from the weights that it starts from, and what it does otherwise.

    Args:
        path: the weights file.
        facts: what it says of its model, see `facts_of_model`; empty for weights of others.
        values: the flags of the training, before these facts are taken.
        given: names of the flags that were given, which are not taken.

    Returns:
        A line about the flags that are taken, and a warning for each of another pipeline.
    """
    others = {name: value for name, value in facts.items() if values[name] != value}
    taken = [f"--{name}={shown(others[name])}" for name in others if name not in {"lr", *given}]
    notes = [f"as {path} was trained: {', '.join(taken)}"] if taken else []
    if "lr" in facts:
        notes.append(f"--lr={facts['lr']:g}, {values['lr_of_start']:g} times that of {path}")
    return notes + [
        f"warning: {path} was trained with --{name}={shown(others[name])}, this run takes "
        f"--{name}={shown(values[name])}: leave the flag out to keep theirs"
        for name in PIPELINE
        if name in others and name in given
    ]


def adopt_checkpoint(flags: Flags, path: str, meta: Mapping[str, Any]) -> Flags:
    """Take the flags that were not given from a checkpoint that is resumed.

    The options of its loss count as given. Raises ValueError where a given flag contradicts it, or
    it belongs to the other stage.
    """
    found = (
        MODEL_OPTIONS | EARLIER | {"normalize_embeddings": False} | meta["flags"]
    )  # checkpoints of earlier versions lack some
    name = found["loss_name"]
    if is_own(name) and "loss_name" not in flags.given:
        raise ValueError(
            f"{path} was trained with --loss_name={name}, a module of your own: give that flag "
            "again, for no file may name a module to run"
        )
    if stage_of(name) != stage_of(flags.loss_name):
        raise ValueError(
            f"{path} was written by {SCRIPTS[stage_of(name)]} (--loss_name={name}): resume it "
            "there, or give it as --pretrained_model to start from its weights"
        )

    kept = {"checkpoint", "config", *OF_THE_CALL, *(LENGTHS if flags.given & LENGTHS else ())}
    recorded = EARLIER | meta["flags"]
    values = {name: value for name, value in recorded.items() if name not in kept}
    fixed = {name: found.get(name) for name in FIXED_FLAGS}
    of_loss = [name for name in meta["loss_options"] if values.get(name) is not None]
    return flags.adopted(path, fixed, values).giving(of_loss)


def settle(
    flags: Flags, train_set: ImageSet, world: World, kept: parts.ClassLayer | None = None
) -> parts.Options:
    """Settle all options of a training, or raise ValueError where flags contradict each other.

    With --keep_loss there is a `kept` class layer.
    """
    _refuse_unused(flags)
    device = choose_device(flags.device, flags.use_gpu, world)
    class_dim = check_counts(train_set, flags.class_dim, flags.total_images)
    loss = _settle_loss(flags, world, class_dim, kept)
    epoch_size = len(train_set)
    if flags.loss_name in V1_LOSSES:
        epoch_size = V1_EPOCH * flags.train_batch_size
    flags = _derive(flags, loss, epoch_size)
    batch_bytes = flags.train_batch_size // world.size * math.prod(flags.image_shape)
    workers = reading_workers(flags.num_workers, device, flags.prefetch * batch_bytes)
    flags = flags.replaced(num_workers=workers)

    is_pair = stage_of(flags.loss_name) == 2
    options = parts.Options(
        model=parts.pick(parts.ModelOptions, flags),
        data=parts.pick(parts.DataOptions, flags),
        reading=parts.pick(parts.ReadingOptions, flags),
        batches=parts.pick(parts.BatchOptions, flags, **_of_batches(flags.values, is_pair)),
        loss=loss,
        teacher=parts.pick(parts.TeacherOptions, flags),
        optimizer=parts.pick(parts.OptimizerOptions, flags),
        schedule=parts.pick(parts.ScheduleOptions, flags, epoch_size=epoch_size),
        run=parts.pick(parts.RunOptions, flags),
        watch=_watch_options(flags.values) if is_pair else parts.WatchOptions(),
        machine=parts.pick(
            parts.MachineOptions,
            flags,
            world=world,
            device=device,
            amp_dtype=choose_amp(flags.amp, device, world),
            tf32=flags.amp == "tf32",
            recompute=flags.with_mem_opt,
        ),
        flags=flags.values,
    )
    check(options, train_set)
    return options


def _of_batches(values: Mapping[str, Any], is_pair: bool) -> dict[str, Any]:
    """Return what the batches of a stage are made of, of which the first has few flags."""
    if not is_pair:
        each = values.get("samples_each_class") or 0
        alone = {"layout": None, "gather": False, "sampler": "random", "hard_classes": 0}
        return {"samples_each_class": each, **alone}
    names = "gather", "sampler", "hard_classes"
    return {
        "samples_each_class": values.get("samples_each_class") or DEFAULT_SAMPLES_EACH_CLASS,
        "layout": layout_of(values["loss_name"]),
        **{name: values[name] for name in names},
    }


def check(options: parts.Options, train_set: ImageSet) -> None:
    """Raise ValueError where settled options of several parts contradict each other."""
    check_frozen(options.optimizer, options.model.pretrained_model)
    check_parts(options.batches, options.machine.world)
    check_sampler(options.batches, options.model.pretrained_model)
    check_batch_norm(options.batches, options.optimizer, options.model, options.machine)
    check_course(options.schedule, options.run, options.data)
    check_reading(options.reading, options.model, options.machine.device, train_set)


def _derive(flags: Flags, loss: parts.LossOptions, epoch_size: int) -> Flags:
    """Return the flags with values in place of those that were left open."""
    num_steps = flags.total_iter_num
    if num_steps is None or "num_epochs" in flags.given:
        num_steps = math.ceil(flags.num_epochs * epoch_size / flags.train_batch_size)
    folder = flags.features_dir or str(Path(flags.model_save_dir) / FEATURES_DIR)
    return flags.replaced(
        image_shape=flags.image_shape or (3, *image_size_of(flags.model)),
        transform=flags.transform or default_transform(flags.model, flags.loss_name),
        total_iter_num=num_steps,
        class_dim=loss.class_dim,
        **({"class_dropout": loss.class_dropout} if loss.alpha else {}),
        **({"features_dir": folder} if flags.trainable == "head" else {}),
        **({} if is_pml(loss.loss_name) else loss.options),
    )


def _watch_options(values: Mapping[str, Any]) -> parts.WatchOptions:
    """Return what stage 2 does about its start; only weights can be tested before it."""
    is_tested = bool(values["test_iter_step"] or values["log_epochs"])
    starts_from_weights = values["pretrained_model"] is not None
    test_start = values["test_start"] and is_tested and starts_from_weights
    return parts.WatchOptions(test_start, values["on_collapse"])


def _refuse_unused(flags: Flags) -> None:
    """Raise ValueError where a flag was given that others leave without use."""
    if flags.lr_strategy != "piecewise_decay":
        flags.refuse(["lr_steps", "lr_gamma"], f"--lr_strategy={flags.lr_strategy}")
    if flags.optimizer != "sgd":
        flags.refuse(["momentum", "nesterov"], f"--optimizer={flags.optimizer}")
    if flags.optimizer not in ("adam", "adamw"):
        flags.refuse(["adam_eps"], f"--optimizer={flags.optimizer}")
    if flags.lr_strategy != "reduce_on_plateau":
        names = ["plateau_patience", "plateau_factor"]
        flags.refuse(names, f"--lr_strategy={flags.lr_strategy}")
    if not flags.cache:
        flags.refuse(["cache_size"], "there is no --cache")
    if flags.train_crop == "random":
        flags.refuse(["min_crop_area", "crop_aspect"], "--train_crop=random resizes no crop")

    if "checkpoint" not in flags.given:
        flags.refuse(["on_changed_data"], "without --checkpoint no run is resumed")
        if not flags.cache and flags.trainable != "head":
            flags.refuse(["verify"], "without --checkpoint and --cache nothing is kept")
    if flags.num_workers == 0:
        flags.refuse(["prefetch"], "--num_workers=0 reads nothing ahead")
    if flags.decode_on == "device" and flags.augment_on == "workers":
        flags.refuse(["augment_on"], "--decode_on=device augments there too")

    if not (flags.test_iter_step or flags.log_epochs):
        flags.refuse(["test_start", *VIEW_NAMES], "nothing is tested")
    elif flags.pretrained_model is None:
        flags.refuse(["test_start"], "without --pretrained_model")
    if flags.teacher is None:
        flags.refuse(["distill_weight", "distill_temperature"], "without --teacher")
    elif not (flags.distill_weight and flags.distill_temperature):
        raise ValueError("--teacher: expected --distill_weight and --distill_temperature above 0")
    if flags.given >= LENGTHS:
        raise ValueError("expected --num_epochs or --total_iter_num, found both")
    if flags.lr_of_start and "lr" in flags.given:
        raise ValueError("expected --lr or --lr_of_start, found both")

    if flags.trainable != "head":
        flags.refuse(["views", "features_dir"], f"--trainable={flags.trainable} keeps no features")
    else:
        flags.refuse(OF_READING, "--trainable=head trains on kept features of a frozen backbone")
        flags.refuse(VIEW_NAMES, "--trainable=head tests kept features of one view")
    if flags.trainable != "all":
        flags.refuse(["lora_rank"], f"--trainable={flags.trainable} chooses what trains")
    if flags.lora_rank:
        flags.refuse(["ema_decay"], "with --lora_rank there is no average of the weights")


def default_transform(model: str, loss_name: str | None = None) -> str:
    """Return the image pipeline that a model takes by default, in a training with a loss."""
    if model not in REFERENCE_MODELS:
        return "standard"
    return "v1" if loss_name in V1_LOSSES else "reference"


def check_counts(train_set: ImageSet, class_dim: int | None, total_images: int | None) -> int:
    """Return the number of training classes; ValueError where that or --total_images is not it."""
    for name, given, what, count in (
        ("class_dim", class_dim, "classes", train_set.num_classes),
        ("total_images", total_images, "images", len(train_set)),
    ):
        if given not in (None, count):
            raise ValueError(
                f"--{name}={given}, but {train_set.name} has {count} training {what} here: leave "
                "the flag out, it is counted"
            )
    return train_set.num_classes


def _settle_loss(
    flags: Flags, world: World, class_dim: int, kept: parts.ClassLayer | None
) -> parts.LossOptions:
    """Settle the loss: the options that were given, and its own defaults; or ValueError."""
    name = flags.loss_name
    stage = stage_of(name)
    own = {} if is_pml(name) else loss_options(name)
    used = {*own, *(("samples_each_class",) if stage == 2 and layout_of(name) == "labels" else ())}
    for option in sorted(flags.given - used):
        losses = ELEM_LOSSES if stage == 1 else PAIR_LOSSES
        users = [other for other in losses if option in loss_options(other)]
        if users:
            raise ValueError(
                f"--{option} is not used by --loss_name={name} (but by {', '.join(users)}): "
                "leave it out"
            )

    options = {
        option: getattr(flags, option) if option in flags.given else parameter.default
        for option, parameter in own.items()
        if option not in DERIVED_OPTIONS
    }
    dropout = flags.class_dropout
    if dropout is None:  # nor recorded
        dropout = CLASS_DROPOUTS.get(flags.model, 0.0)
    if stage == 1:
        options |= {"class_dropout": dropout} if "class_dropout" in own else {}
        if "scale" not in flags.given:
            options |= scale_of_classes(name, class_dim, world)
        return parts.LossOptions(name, options, class_dim, 0.0, 0.0, 0, 0, flags.shard_head)
    if flags.alpha and kept:
        raise ValueError(
            "expected --keep_loss or --alpha, found both: the class layer is kept, or a new one"
        )
    if not flags.alpha:
        flags.refuse(["class_dropout"], "without --alpha there is no new class layer")
    if not is_pml(name):
        flags.refuse(["loss_options"], f"--loss_name={name} has flags of its own")
    if not flags.xbm_size:
        flags.refuse(["xbm_start"], "without --xbm_size")
    options |= parse_pml_options(name, flags.loss_options or "") if is_pml(name) else {}
    check_memory(name, flags.xbm_size, is_shared=world.size == 1 or flags.gather)
    check_scale(name, flags.normalize_embeddings)
    if not flags.normalize_embeddings:
        flags.refuse(["embedding_scale"], "without --normalize_embeddings=True")
    memory = flags.xbm_size, flags.xbm_start
    scale = flags.normalize_embeddings, flags.embedding_scale
    beside = *memory, False, *scale, flags.keep_loss, kept
    return parts.LossOptions(name, options, class_dim, flags.alpha, dropout, *beside)


def scale_of_classes(loss_name: str, class_dim: int, world: World) -> dict[str, float]:
    """Return the option `scale` that fits so few classes, and say so; nothing for many of them.

    Nor is there any for losses whose scale is not that of a softmax over the cosines of faces.
    """
    if loss_name not in FACE_LOSSES or class_dim >= FACES:
        return {}
    scale = fixed_scale(class_dim)
    if world.is_main:
        log(
            f"--scale={scale:.4g}, sqrt(2) log(C - 1) for {class_dim} classes: the authors' "
            f"{loss_options(loss_name)['scale'].default:g} is for tens of thousands"
        )
    return {"scale": scale}


def check_scale(loss_name: str, normalize_embeddings: bool) -> None:
    """Raise ValueError where a loss has no use for embeddings of one length."""
    if normalize_embeddings and not reads_raw(loss_name):
        able = ", ".join(name for name in PAIR_LOSSES if reads_raw(name))
        raise ValueError(
            f"--normalize_embeddings is not used by --loss_name={loss_name}, which normalises them "
            f"itself; it is for losses that read them as they are, {able}: leave it out"
        )


def check_memory(loss_name: str, xbm_size: int, is_shared: bool) -> None:
    """Raise ValueError where a loss has no use for a memory, or each process had one of its own."""
    if xbm_size and not is_shared:
        raise ValueError(
            "--xbm_size with several processes needs --gather=True: otherwise each would have a "
            "memory of its own"
        )
    able = [name for name, loss in PAIR_LOSSES.items() if issubclass(loss, LabelLoss)]
    if xbm_size and loss_name not in able:
        raise ValueError(
            f"--xbm_size is not used by --loss_name={loss_name}: it is for losses that "
            f"compare with a memory by label, {', '.join(able)}"
        )


def parse_pml_options(loss_name: str, text: str) -> dict[str, float]:
    """Parse `name=value,...` into the options of a loss of pytorch-metric-learning."""
    types: dict[str, type[float]] = {
        name: float
        for name, parameter in loss_options(loss_name).items()
        if name not in DERIVED_OPTIONS
        and (parameter.default is parameter.empty or isinstance(parameter.default, int | float))
    }
    options = parse_options(text, types, loss_name)
    # A count such as centers_per_class has to be an integer, and 2 is as good as 2.0 elsewhere.
    return {name: int(value) if value == int(value) else value for name, value in options.items()}


def check_frozen(optimizer: parts.OptimizerOptions, pretrained_model: str | None) -> None:
    """Raise ValueError where weights of the backbone would be frozen that are random."""
    is_partly = optimizer.trainable != "all"
    if pretrained_model is None and (is_partly or optimizer.lora_rank):
        name = (
            f"trainable={optimizer.trainable}" if is_partly else f"lora_rank={optimizer.lora_rank}"
        )
        raise ValueError(
            f"--{name} freezes weights of the backbone, which would be random ones: give "
            "--pretrained_model=FILE"
        )


def check_parts(batches: parts.BatchOptions, world: World) -> None:
    """Raise ValueError where the parts of a batch are too small, or the loss sees parts and all."""
    least = 2 * world.size * batches.accumulation_steps
    if batches.train_batch_size < least:
        raise ValueError(
            f"--train_batch_size={batches.train_batch_size}: batch norm needs at least 2 images "
            f"per device and part, {least} in all"
        )
    if batches.gather and batches.accumulation_steps > 1:
        raise ValueError(
            "--gather=True compares the whole batch, --accumulation_steps its parts alone: leave "
            "one of them out, or give --chunk_size to save memory"
        )


def check_sampler(batches: parts.BatchOptions, weights: str | None) -> None:
    """Raise ValueError where the classes of a batch cannot be drawn as they are to be."""
    asked = {
        "--sampler=hierarchical": batches.sampler == "hierarchical",
        f"--hard_classes={batches.hard_classes}": batches.hard_classes > 0,
    }
    found = [name for name, is_asked in asked.items() if is_asked]

    if len(found) > 1:
        raise ValueError(f"expected one of {' and '.join(found)}, found both")
    if found and batches.layout in ("triples", "pairs"):
        raise ValueError(
            f"{found[0]} is not used: the loss takes {batches.layout} of images, not blocks of a "
            "class; leave it out"
        )
    if batches.hard_classes and weights is None:
        raise ValueError(
            f"{found[0]} needs class weights, which say what classes are near: give "
            "--pretrained_model=FILE, a checkpoint of stage 1"
        )


def check_batch_norm(
    batches: parts.BatchOptions,
    optimizer: parts.OptimizerOptions,
    model: parts.ModelOptions,
    machine: parts.MachineOptions,
) -> None:
    """Raise ValueError where a chunk is too small for batch norm, or flags about it contradict."""
    if machine.sync_bn and optimizer.freeze_bn:
        raise ValueError("--sync_bn=True is not used with --freeze_bn=True: leave one of them out")
    part = batches.train_batch_size // (machine.world.size * batches.accumulation_steps)
    chunk_size = batches.chunk_size
    learns_statistics = not optimizer.freeze_bn or model.feature_norm == "bnneck"
    if chunk_size and learns_statistics and part // math.ceil(part / chunk_size) < 2:
        raise ValueError(
            f"--chunk_size={chunk_size} cuts {part} images so that a chunk has one, and batch "
            "norm needs 2: give another, or --freeze_bn=True without --feature_norm=bnneck"
        )


def check_course(
    schedule: parts.ScheduleOptions, run: parts.RunOptions, data: parts.DataOptions
) -> None:
    """Raise ValueError where tests are to decide about a run that has none of validation images."""
    name = f"--patience={schedule.patience}" if schedule.patience else ""
    if schedule.lr_strategy == "reduce_on_plateau":
        name = "--lr_strategy=reduce_on_plateau"
    if name and not (run.test_iter_step or run.log_epochs):
        raise ValueError(f"{name} looks at tests, and nothing is tested: give --test_iter_step")
    if name and "val" not in data.splits:
        raise ValueError(
            f"{name} looks at tests of validation images, and there are none: hold some of the "
            "training classes out by --val_fold=0/5"
        )


def check_reading(
    reading: parts.ReadingOptions,
    model: parts.ModelOptions,
    device: torch.device,
    train_set: ImageSet,
) -> None:
    """Raise ValueError where how images are read contradicts itself, the device or the data set."""
    reading.augmentation.check_size(model.image_size)
    on_device = reading.decode_on == "device"
    if on_device and device.type != "cuda":
        raise ValueError(
            f"--decode_on=device needs a CUDA GPU, this run is on {device}: leave it out"
        )
    if on_device and reading.cache:
        raise ValueError(
            "expected --cache or --decode_on=device, found both: a cache holds decoded images"
        )
    if on_device and train_set.images is not None:
        raise ValueError(
            f"--decode_on=device is not used: the images of {train_set.name} are no files"
        )
    if on_device and reading.on_bad_image == "skip":
        raise ValueError(
            "--on_bad_image=skip needs --decode_on=workers: on the device, a file shows itself "
            "broken when no other image can be drawn any more"
        )

    place = "decode_on" if on_device else "augment_on"
    if getattr(reading, place) != "device":
        return
    if model.transform != "standard":
        raise ValueError(
            f"--{place}=device needs --transform=standard, found {model.transform}, whose "
            "resizing is done by the workers alone"
        )
    unable = [f"--{name}" for name in BY_WORKERS if getattr(reading, name)]
    if reading.train_crop == "random":
        unable.append("--train_crop=random")
    if unable:
        raise ValueError(
            f"--{place}=device crops and mirrors alone, {', '.join(unable)} is done by the "
            "workers: leave one of them out"
        )
