"""From flags to everything that a training run consists of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.layers.norm_act import convert_sync_batchnorm
from timm.utils.model_ema import ModelEmaV3
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from metric_learning.common.flags import Flags
from metric_learning.common.log import log, versions
from metric_learning.engine.embed.class_layer import (
    describe_layer,
    find_nearest_classes,
    take_class_weights,
)
from metric_learning.engine.embed.frozen import open_frozen
from metric_learning.engine.embed.network import build_frozen, build_network, preprocessing_of
from metric_learning.engine.evaluate import caveats
from metric_learning.engine.evaluate.classification import class_layer_of
from metric_learning.engine.evaluate.scoring import check_scorable
from metric_learning.engine.options import parts
from metric_learning.engine.options.tables import ACCEPT
from metric_learning.engine.options.training import (
    adopt_checkpoint,
    adopt_v1,
    augmentation_of,
    facts_of_model,
    notes_on_weights,
    rates_of,
    settle,
)
from metric_learning.engine.options.training_table import SCRIPTS
from metric_learning.engine.parallel.collectives import decide_on_main
from metric_learning.engine.parallel.devices import place, prepare_steps
from metric_learning.engine.parallel.world import World
from metric_learning.engine.run.identity import (
    Origin,
    check_flags,
    check_images,
    check_length,
    check_teacher,
    describe_classes,
    find_origin,
)
from metric_learning.engine.run.resume import AUTO, Start, check_classes, find_start, load_start
from metric_learning.engine.run.run_folder import choose_folder
from metric_learning.engine.run.signals import StopRequest
from metric_learning.engine.run.tracking import check_trackers
from metric_learning.engine.train.criterion import build_criterion, complete_options, load_teacher
from metric_learning.engine.train.images import open_training_images
from metric_learning.engine.train.learner import Learner
from metric_learning.engine.train.optimizers import build_optimizer
from metric_learning.engine.train.run import TrainingRun
from metric_learning.engine.train.stages import Stage
from metric_learning.engine.train.step import Meter
from metric_learning.engine.train.watch import Watch
from metric_learning.losses import ELEM_LOSSES, PAIR_LOSSES, V1_LOSSES, stage_of
from metric_learning.models import (
    EmbeddingModel,
    add_lora,
    choose_trainable,
    load_weights,
    read_metadata,
    resolve_model,
)
from metric_learning.models.weights.files import BARE, identify
from metric_learning.reader import ImageSet, describe_sets
from metric_learning.reader.batches.related_classes import Relations, read_nearest
from metric_learning.retrieval.metrics import default_ks


def start_run(flags: Flags, stage: Stage, world: World, stop: StopRequest) -> TrainingRun:
    """Settle the options of a training and build everything; restore the checkpoint, if any."""
    # Where it begins decides what the flags mean, and so do the training images.
    flags = adopt_v1(flags, world)
    check_stage(flags.loss_name, stage)
    name, weights = resolve_model(flags.model, flags.pretrained_model)
    flags, given = flags.replaced(model=name, pretrained_model=weights), flags.given
    facts = read_facts(flags.values)
    notes = notes_on_weights(weights, facts, flags.values, given)
    flags = flags.adopted(str(weights), {n: facts[n] for n in facts if n == "optimizer"}, facts)
    start = begin(parts.pick(parts.RunOptions, flags), flags.values, given, notes, world)
    flags = flags.replaced(checkpoint=start.checkpoint)
    if start.checkpoint is not None:
        flags = adopt_checkpoint(flags, start.checkpoint, start.meta)

    path = choose_path(start, parts.pick(parts.RunOptions, flags), given, world)
    data, may_miss = parts.pick(parts.DataOptions, flags), flags.on_bad_image == "skip"
    sets = load_splits(data, bool(flags.test_iter_step or flags.log_epochs), may_miss)
    train_set, test_set = sets["train"], sets.get("val", sets.get("test"))
    start = check_classes(start, train_set, flags.on_changed_data)
    kept = find_kept(flags.values.get("keep_loss"), flags.pretrained_model, start, train_set)
    options = settle(flags, train_set, world, kept)
    reading, machine, weights = options.reading, options.machine, options.model.pretrained_model
    start = compare(start, sets, weights, reading, options.schedule, world)
    relations = relate_classes(options.batches, train_set, weights, start.checkpoint, world)
    sampler = stage.make_sampler(train_set.labels, options.batches, machine.seed, world, relations)
    # The weights are drawn in this order: those of the network, then those of the loss.
    torch.manual_seed(machine.seed)
    model = prepare_network(options.model, options.optimizer, machine, start.state)
    around = options.loss, options.teacher, options.optimizer, options.batches
    learner = build_learner(model, *around, machine)
    preprocessing = preprocessing_of(options.model, model, machine.max_pixels, reading.augmentation)
    run = TrainingRun(
        options=options,
        learner=learner,
        train_set=open_training_images(train_set, reading, preprocessing.decoding),
        frozen=open_frozen(model, sets, options.data, preprocessing, reading, machine),
        test_set=test_set,
        sampler=sampler,
        preprocessing=preprocessing,
        start=replace(start, state=None),  # which would keep the file open
        stop=stop,
        path=path,
        meta=describe(options.model, options.data, options.loss, learner, train_set)
        | start.describe(given),
        meter=Meter(world),
        epoch=Meter(world),
        watch=build_watch(stage, options.watch, options.loss),
    )
    return filled(run, start.state, weights)


def filled(run: TrainingRun, state: Mapping[str, Any] | None, weights: str | None) -> TrainingRun:
    """Return a run with the state of a checkpoint; a new one takes the class weights it keeps."""
    if state is not None:
        check_teacher(run.meta.get("teacher"), str(run.options.run.checkpoint), state["meta"])
        run.restore(state)
    elif run.options.loss.kept is not None:
        take_class_weights(class_layer_of(run.learner.criterion), str(weights))
    return run


def find_kept(
    weight: float | None, weights: str | None, start: Start, train_set: ImageSet
) -> parts.ClassLayer | None:
    """Return the loss of the weights that a run began with, which --keep_loss goes on with.

    None where it has no `weight`. A run that is resumed knows it. Raises ValueError where there
    are no class weights, or those of other classes.
    """
    if not weight:
        return None
    if start.meta:
        return describe_layer(start.meta)
    if weights is None:
        raise ValueError("--keep_loss goes on with the loss of --pretrained_model=CHECKPOINT")

    meta = read_metadata(weights) or {}
    layer = describe_layer(meta) if "loss" in meta else None
    if layer is None or identify(weights)[1] in BARE:
        raise ValueError(
            f"--keep_loss: {weights} has no class weights of a loss of this project: give a .pt "
            "checkpoint of stage 1, or leave the flag out"
        )
    before, now = list(meta.get("class_names", ())), list(train_set.class_names.values())
    if before != now:
        raise ValueError(
            f"--keep_loss: {weights} was trained on other classes "
            f"({describe_classes(before, now)}): leave it out, or train on the same"
        )
    return layer


def check_stage(loss_name: str, stage: Stage) -> None:
    """Raise ValueError where a loss is one of the other stage."""
    if stage_of(loss_name) != stage.number:
        script = SCRIPTS[stage_of(loss_name)]
        raise ValueError(f"{loss_name} is a loss of the other stage: train it with {script}")


def begin(
    run: parts.RunOptions,
    values: Mapping[str, Any],
    given: Set[str],
    notes: Sequence[str],
    world: World,
) -> Start:
    """Find where a run begins, and read its checkpoint, if any; without one, `notes` are told.

    Raises ValueError where --checkpoint=auto finds the run of another command than this one, whose
    flags have `values`, some of them `given`, or a package of --log_to is not installed.
    """
    check_trackers(run.log_to)
    start = decide_on_main(world, lambda: find_start(run))
    path = start.checkpoint
    if path is None:
        return replace(start, notes=[*start.notes, *notes])
    start = replace(start, state=load_start(path))
    if start.is_auto:
        decide_on_main(world, lambda: check_flags(values, given, path, start.meta))
    return start


def read_facts(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the weights that a training starts from say of their model, if anything.

    With flags of these values what was done to its images goes on beside its loss, or its
    optimizer at a share of its rate. The run folder is named after the model, which they may
    settle. A run that is resumed does not need them any more, so that they may be gone. Raises
    ValueError where they do not say the rate of which a share is asked.
    """
    goes_on, share = bool(values.get("keep_loss")), values["lr_of_start"]
    weights = values["pretrained_model"]
    if values["checkpoint"] not in (None, AUTO):
        return {}
    if share and weights is None:
        raise ValueError("--lr_of_start is a share of the rate of --pretrained_model=CHECKPOINT")
    try:
        meta = read_metadata(weights) if weights is not None else None
    except FileNotFoundError:
        return {}
    facts = {} if meta is None else facts_of_model(meta)
    facts |= augmentation_of(meta) if meta is not None and goes_on else {}
    return facts | (rates_of(str(weights), meta or {}, share, goes_on) if share else {})


def choose_path(start: Start, run: parts.RunOptions, given: Set[str], world: World) -> Path:
    """Choose the run folder, see `choose_folder`, where it is not settled yet, and say it."""
    is_named = bool(given & {"model_save_dir", "run_name"})
    path = start.folder or decide_on_main(world, lambda: choose_folder(run, is_named))
    if world.is_main:
        log(f"run folder: {path}")
    return path


def load_splits(data: parts.DataOptions, is_tested: bool, may_miss: bool) -> dict[str, ImageSet]:
    """Load the training images and, if there are tests, theirs: of the val split, else the test.

    Raises ImageError where images are not there, of the training ones unless they `may_miss`, or
    ValueError where the test could not be scored.
    """
    sets = {"train": data.load("train").require_whole(may_miss)}
    if is_tested:
        split = "val" if "val" in data.splits else "test"
        sets[split] = data.load(split).require_whole()
        check_scorable(sets[split])
    return sets


def compare(
    start: Start,
    sets: Mapping[str, ImageSet],
    pretrained_model: str | None,
    reading: parts.ReadingOptions,
    schedule: parts.ScheduleOptions,
    world: World,
) -> Start:
    """Find out what a run is of, and compare it with the checkpoint that it resumes, if any.

    Returns a start that knows its origin, and tells of what differs and may. Raises ValueError
    where the checkpoint is of something else.
    """

    def look() -> tuple[Origin, list[str]]:
        origin = find_origin(sets, pretrained_model, reading, start.checkpoint, start.meta)
        if start.checkpoint is None:
            return origin, []
        accepts = reading.on_changed_data == ACCEPT
        return origin, check_images(origin, start.checkpoint, start.meta, accepts)

    origin, notes = decide_on_main(world, look)
    if start.state is not None:
        notes += check_length(schedule, str(start.checkpoint), start.state)
    return replace(start, notes=[*start.notes, *notes], origin=origin)


def relate_classes(
    batches: parts.BatchOptions,
    train_set: ImageSet,
    weights: str | None,
    checkpoint: str | None,
    world: World,
) -> Relations:
    """Find out how classes are related, as far as batches are drawn by it.

    A resumed run has what its folder holds. Raises ValueError where nothing says it.
    """
    if batches.sampler == "hierarchical":
        if train_set.super_classes is None:
            raise ValueError(
                f"--sampler=hierarchical needs super classes, which {train_set.name} has not: "
                "leave it out"
            )
        names = [train_set.super_classes[label] for label in range(train_set.num_classes)]
        return Relations(super_classes=np.unique(names, return_inverse=True)[1])
    if not batches.hard_classes:
        return Relations()

    others = batches.train_batch_size // batches.samples_each_class - 1
    shape = train_set.num_classes, min(others, train_set.num_classes - 1)

    def find() -> np.ndarray:
        known = read_nearest(Path(checkpoint).parent, shape) if checkpoint else None
        names = list(train_set.class_names.values())
        return find_nearest_classes(str(weights), names, shape[1]) if known is None else known

    return Relations(nearest=decide_on_main(world, find))


def build_watch(stage: Stage, options: parts.WatchOptions, loss: parts.LossOptions) -> Watch:
    """Build what watches over the start of stage 2."""
    return Watch(
        is_pair=stage.number == 2,
        stops=options.on_collapse == "stop",
        chooses_scale=loss.normalize_embeddings and loss.embedding_scale is None,
    )


def describe(
    model: parts.ModelOptions,
    data: parts.DataOptions,
    loss: parts.LossOptions,
    learner: Learner,
    train_set: ImageSet,
) -> dict[str, Any]:
    """Say what a checkpoint needs to rebuild the model, and where it comes from."""
    kept = {}
    if loss.kept is not None:
        kept = {"kept_loss": {"loss": loss.kept.loss_name, "options": dict(loss.kept.options)}}

    return {
        "model": model.model,
        "embedding_size": model.embedding_size,
        **learner.model.options,
        "image_shape": model.image_shape,
        "mean": learner.model.mean,
        "std": learner.model.std,
        "dataset": data.dataset,
        "loss": loss.loss_name,
        "loss_options": dict(learner.loss_options),
        **kept,
        **({"teacher": learner.teacher.digest} if learner.teacher else {}),
        "class_names": list(train_set.class_names.values()),
        "versions": versions(),
    }


def build_learner(
    model: EmbeddingModel,
    loss: parts.LossOptions,
    teacher: parts.TeacherOptions,
    optimizer: parts.OptimizerOptions,
    batches: parts.BatchOptions,
    machine: parts.MachineOptions,
) -> Learner:
    """Build loss and optimizer around a network; ValueError where an option does not fit them."""
    is_on_features = optimizer.is_on_features
    network = model.top if is_on_features else model
    dim, steps = model.embedding_size, batches.accumulation_steps
    criterion = build_criterion(loss, dim, steps, machine.world).to(machine.device)
    is_half = machine.amp_dtype is torch.float16
    decay = optimizer.ema_decay
    check_trainable(network, criterion, decay)

    return Learner(
        model=model,
        criterion=criterion,
        loss_options=complete_options(loss, dim),
        optimizer=build_optimizer(model, model.head, criterion, optimizer),
        scaler=torch.amp.GradScaler(machine.device.type, enabled=is_half),
        ema=ModelEmaV3(network, decay, use_warmup=True) if decay else None,
        teacher=load_teacher(teacher, model.image_size, machine),
        is_on_features=is_on_features,
    )


def check_trainable(network: nn.Module, criterion: nn.Module, ema_decay: float) -> None:
    """Raise ValueError where a run has no weights to train, or none of the network to average."""
    in_network, in_loss = (
        any(parameter.requires_grad for parameter in module.parameters())
        for module in (network, criterion)
    )
    advice = "give --embedding_size=128 or --feature_norm=bnneck"
    if not (in_network or in_loss):
        raise ValueError(
            f"--trainable=head finds nothing to train behind the backbone: {advice}, or train a "
            "loss with weights"
        )
    if ema_decay and not in_network:
        raise ValueError(f"--ema_decay finds no weights of the network that train: {advice}")


def prepare_network(
    options: parts.ModelOptions,
    optimizer: parts.OptimizerOptions,
    machine: parts.MachineOptions,
    resumed: Mapping[str, Any] | None,
) -> EmbeddingModel:
    """Build a network on its device; ValueError where an option does not fit it.

    It has the weights of --pretrained_model, or of a `resumed` checkpoint.
    """
    prepare_steps(machine.device)
    model = load_network(options, optimizer.is_on_features, machine, resumed)
    if machine.recompute:
        try:
            model.backbone.set_grad_checkpointing(True)  # type: ignore[operator]
        except (AssertionError, AttributeError) as error:
            raise ValueError(f"--with_mem_opt: {model.name} cannot, leave the flag out") from error

    check_batch_norm(model, optimizer.freeze_bn, machine.sync_bn)
    if machine.sync_bn:
        synchronise_batch_norm(model, machine.world, machine.device)
    if optimizer.lora_rank:
        add_lora(model, optimizer.lora_rank)
    place(model, machine.device)
    choose_trainable(model, optimizer.trainable)
    return model


def load_network(
    options: parts.ModelOptions,
    is_frozen: bool,
    machine: parts.MachineOptions,
    resumed: Mapping[str, Any] | None,
) -> EmbeddingModel:
    """Build a network with the weights that it starts from, and say what these were."""
    if resumed is not None:
        model = build_network(options)
        model.take_norm(resumed["meta"])
        if is_frozen:  # features are kept by it, before all else is restored
            model.load_state_dict(resumed["model"])
        return model
    if not options.pretrained_model:
        return build_network(options)

    if is_frozen:
        model, report = build_frozen(options, machine.seed)
    else:
        model = build_network(options)
        report = load_weights(model, options.pretrained_model)
    if machine.world.is_main:
        log(f"weights: {report.source}, {len(report.loaded)} tensors loaded{report.remarks}")
        if report.missing:
            log(f"weights: {', '.join(report.missing)} not there, starting as new")
    return model


def check_batch_norm(model: EmbeddingModel, freeze_bn: bool, sync_bn: bool) -> None:
    """Raise ValueError where an option is about batch norm and its part of the model has none."""
    for name, is_asked, part in (
        ("freeze_bn", freeze_bn, model.backbone),
        ("sync_bn", sync_bn, model),
    ):
        if is_asked and not any(isinstance(m, _BatchNorm) for m in part.modules()):
            raise ValueError(f"--{name} is not used: {model.name} has no batch norm")


def synchronise_batch_norm(module: nn.Module, world: World, device: torch.device) -> None:
    """Let a module's batch norms take their statistics over all ranks; ValueError without GPUs."""
    if world.size == 1 or device.type != "cuda":
        raise ValueError(
            "--sync_bn=True needs several processes with a GPU each (PyTorch has it on GPUs only), "
            f"found {world.size} on {device.type}: leave it out or set --sync_bn=False"
        )
    convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]


def announce(run: TrainingRun) -> None:
    """Log what is about to be trained, on what, and keep what its images are."""
    learner, world = run.learner, run.machine.world
    if world.is_main and run.start.origin is not None:
        run.start.origin.save(run.path)
        run.sampler.save(run.path)
    for line in describe_sets([split for split in (run.train_set, run.test_set) if split]):
        run.say(line)
    if run.test_set is not None and run.test_set.split == "val":
        run.say("the val split is tested here and chooses best.pt; eval.py tests on the test split")
    if run.sampler.note:
        run.say(run.sampler.note)

    size = sum(parameter.numel() for parameter in learner.model.parameters())
    run.say(
        f"{run.options.model.model}, {size / 1e6:.1f} million parameters, "
        f"{learner.model.embedding_size}-d embeddings; {run.options.loss.loss_name}, "
        f"lr {run.options.schedule.lr:g}; {run.machine.device}, {world.size} process(es)"
    )
    trainable, rank = run.options.optimizer.trainable, run.options.optimizer.lora_rank
    if trainable != "all" or rank:
        what = f"--lora_rank={rank}" if rank else f"--trainable={trainable}"
        size = sum(p.numel() for p in learner.model.parameters() if p.requires_grad)
        run.say(f"{what}: {size / 1e6:.2f} million of them train")

    kept = run.options.loss.kept
    if kept is not None:
        weight = run.options.loss.keep_loss
        run.say(f"--keep_loss={weight:g}: {kept.loss_name} goes on with its class weights beside")
    for note in run.start.notes:
        run.say(note)
    run.say_all(caveats_of(run))
    if run.start.checkpoint:
        run.say(f"resuming {run.start.checkpoint} after step {run.step}")


def caveats_of(run: TrainingRun) -> list[str]:
    """Warn where the tests of a run will say little, or its weights are none or do not fit."""
    lines, model, path = [], run.learner.model, run.options.model.pretrained_model
    if run.test_set is not None:
        lines += caveats.of_split(run.test_set, default_ks(int(run.test_set.is_gallery.sum())))
    if run.start.checkpoint:
        return lines
    if path:
        meta = read_metadata(path) or {}
        lines += caveats.other_inputs(run.options.model, meta, model.mean, model.std)
        return lines + recipe_for(run.options.loss, meta)
    size = sum(parameter.numel() for parameter in model.parameters())
    name, freezes_bn = run.options.model.model, run.options.optimizer.freeze_bn
    return lines + caveats.no_weights(name, size, len(run.train_set), freezes_bn)


def recipe_for(loss: parts.LossOptions, meta: Mapping[str, Any]) -> list[str]:
    """Name the settings for a second stage, after the `meta` of stage 1, whose loss is not kept."""
    is_second = meta.get("loss") in ELEM_LOSSES and loss.loss_name in PAIR_LOSSES
    if not is_second or loss.kept or loss.alpha or loss.loss_name in V1_LOSSES:
        return []
    return [
        f"the loss of stage 1, {meta['loss']}, is not kept here; settings that keep it: "
        f"--config=configs/recipes/stage2_{loss.loss_name}.yaml (docs/recipes.md)"
    ]
