"""What evaluation and inference share: from flags and a weights file to a model and embeddings."""

from __future__ import annotations

import contextlib
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from metric_learning.common.log import log
from metric_learning.engine.embed.extract import extract, extract_to
from metric_learning.engine.embed.features import FeatureFile, FeatureWriter
from metric_learning.engine.embed.network import model_of
from metric_learning.engine.parallel.devices import choose_amp, place
from metric_learning.engine.parallel.distributed import (
    World,
    decide_on_main,
    gather_rows,
    wait_for_all,
)
from metric_learning.engine.run.signals import StopRequest
from metric_learning.engine.train.criterion import load_class_layer
from metric_learning.models import (
    REFERENCE_MODELS,
    EmbeddingModel,
    load_weights,
    options_of,
    read_metadata,
)
from metric_learning.models.weights.fingerprint import RANDOM
from metric_learning.models.weights.load import first_keys
from metric_learning.reader import ImageSet, load_index
from metric_learning.reader.batches.loader import Preprocessing, eval_loader
from metric_learning.retrieval.inputs import first_not_finite

DATA_SET_FLAGS = (
    "data_dir",
    "train_classes",
    "test_classes",
    "train_list",
    "test_list",
    "csv",
    "fold",
)


@dataclass(frozen=True)
class Embedder:
    """A model ready to embed images.

    Attributes:
        model: in evaluation mode, on its device.
        preprocessing: the image pipeline that it was trained with.
        meta: what its checkpoint says of it; empty for foreign weights.
        class_layer: a stage-1 loss with its class weights, or None where there is none.
        source: a line about where the weights come from and what of them was left out.
    """

    model: EmbeddingModel
    preprocessing: Preprocessing
    meta: dict[str, Any]
    class_layer: Any
    source: str


def preprocessing_of(args: Namespace, model: EmbeddingModel) -> Preprocessing:
    """Build the image pipeline that the flags describe; the model knows its mean and std."""
    default = "reference" if args.model in REFERENCE_MODELS else "standard"
    return Preprocessing(
        transform=args.transform or default,
        crop_size=args.image_shape[1],
        mean=model.mean,
        std=model.std,
        min_crop_area=getattr(args, "min_crop_area", 1.0),
        horizontal_flip=getattr(args, "horizontal_flip", False),
    )


def refuse_flags(given: set[str], names: Sequence[str], reason: str) -> None:
    """Raise ValueError where the user gave a flag that nothing would use."""
    unused = [f"--{name}" for name in names if name in given]
    if unused:
        raise ValueError(f"{', '.join(unused)} is not used ({reason}): leave it out")


def adopt_metadata(args: Namespace, given: set[str], meta: dict[str, Any]) -> None:
    """Set the flags that were not given to what the checkpoint says of its model and data.

    Raises:
        ValueError: a given flag contradicts the checkpoint.
    """
    described = {name: meta[name] for name in ("model", "embedding_size")} | options_of(meta)
    for name, value in described.items():
        if name in given and getattr(args, name) != value:
            raise ValueError(
                f"{args.pretrained_model} holds {meta['model']} with --{name}={value}, not "
                f"--{name}={getattr(args, name)}: leave the flag out"
            )
        setattr(args, name, value)
    flags = meta.get("flags", {})  # converted weights have none, exported ones those of the model
    flags = {"dataset": meta["dataset"], **flags} if "dataset" in meta else flags
    inherited = ["image_shape", "transform"]
    if "dataset" not in given or args.dataset == flags.get("dataset"):
        inherited += ["dataset", *DATA_SET_FLAGS]
    for name in inherited:
        if name in flags and name not in given:
            value = flags[name]
            setattr(args, name, tuple(value) if isinstance(value, list) else value)


def load_embedder(args: Namespace, given: set[str], device: torch.device) -> Embedder:
    """Load the model of --pretrained_model; `args` then holds what the checkpoint says.

    Raises:
        ValueError: no weights were named, they are no weights, or they contradict the flags.
    """
    path = args.pretrained_model
    if path is None:
        raise ValueError(
            "expected --pretrained_model=CHECKPOINT (or --pretrained_model=random for untrained "
            "weights)"
        )
    meta = {} if path == RANDOM else read_metadata(path) or {}
    if meta:
        adopt_metadata(args, given, meta)
    torch.manual_seed(args.seed)
    model = model_of(args)
    source = f"{args.model} with random weights"
    if path != RANDOM:
        report = load_weights(model, path)
        # The exponent of gem is part of the backbone, and as good at 3 as it starts.
        lacking = [name for name in report.missing if not name.startswith("backbone.")]
        if lacking:
            raise ValueError(
                f"{path} lacks {', '.join(lacking)}: give the --embedding_size and --feature_norm "
                "it has"
            )
        rest = report.unexpected
        left_out = f", {len(rest)} left out: {first_keys(rest)}" if rest else ""
        source = f"{args.model}, {len(report.loaded)} tensors of {path} ({report.source}){left_out}"
    class_layer = load_class_layer(path, meta, model, getattr(args, "class_dim", None))
    if class_layer is not None:
        class_layer.to(device)
    if meta:
        model.mean, model.std = tuple(meta["mean"]), tuple(meta["std"])
    preprocessing = preprocessing_of(args, model)
    place(model, device)
    return Embedder(model.eval(), preprocessing, meta, class_layer, source)


def load_split(args: Namespace, split: str) -> ImageSet:
    """Load the split of the data set that the flags describe."""
    return load_index(
        args.dataset,
        args.data_dir,
        split,
        # The flags that a dump was made with may be older than some of the names.
        **{name: getattr(args, name, None) for name in DATA_SET_FLAGS if name != "data_dir"},
    )


@dataclass(frozen=True)
class Job:
    """What a script was told, and where it runs.

    Attributes:
        args: a value per flag; the checkpoint's replace those that were not given.
        given: names of the flags that the user gave.
        device: where it computes.
        world: this process's place among those that share the work.
        say: logs a line, on one of the processes.
    """

    args: Namespace
    given: set[str]
    device: torch.device
    world: World = World()
    say: Callable[[str], object] = log


def open_split(job: Job) -> tuple[Embedder, ImageSet]:
    """Load the model of --pretrained_model and the index of --split, and say what they are."""
    embedder = load_embedder(job.args, job.given, job.device)
    job.say(embedder.source)
    index = load_split(job.args, job.args.split)
    job.say(f"{index.split}: {index.name}, {len(index)} images of {index.num_classes} classes")
    return embedder, index


def embed_split(
    job: Job, embedder: Embedder, index: ImageSet, features: FeatureFile | None = None
) -> np.ndarray:
    """Embed the images of an index as the flags say, see `embed_index`."""
    return embed_index(
        embedder.model,
        index,
        embedder.preprocessing,
        batch_size=job.args.batch_size,
        num_workers=min(job.args.num_workers, len(index) // job.args.batch_size),
        device=job.device,
        amp_dtype=choose_amp(job.args.amp, job.device),
        world=job.world,
        features=features,
        log=job.say,
        log_every=job.args.display_iter_step,
    )


def embed_index(
    model: EmbeddingModel,
    index: ImageSet,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    num_workers: int,
    device: torch.device,
    amp_dtype: torch.dtype | None = None,
    world: World | None = None,
    features: FeatureFile | None = None,
    log: Callable[[str], object] | None = None,
    log_every: int = 10,
    stop: StopRequest | None = None,
) -> np.ndarray:
    """Embed every image of an index once, shared among all ranks: (N, D) float32 in its order.

    Args:
        model: maps images to embeddings, on `device`.
        index: N images.
        preprocessing: the image pipeline.
        batch_size: images per batch.
        num_workers: processes that read images.
        device: where the model is.
        amp_dtype: type of the forward pass; None computes in float32.
        world: this process's place among those that share the work.
        features: a file for the embeddings: rows that it holds already are not computed again, and
            the result is mapped from it.
        log: receives a line every `log_every` batches.
        log_every: in batches.
        stop: breaks off where the training that this is part of is to stop.

    Raises:
        Stopped: on all ranks, where `stop` was asked of one.
        ValueError: an embedding is not finite; the message names the image. Or the feature file is
            of something else.
        OSError: an image cannot be read.
    """
    assert features is None or stop is None
    world = world or World()
    missing = np.arange(len(index))
    if features is not None:  # one list for all ranks, since the first one writes soon
        missing = decide_on_main(world, features.prepare)
    if features is not None and log is not None and len(missing) < len(index):
        log(f"{len(index) - len(missing)} of {len(index)} features are in {features.path}")
    own = missing[world.rank :: world.size]
    loader = eval_loader(
        index,
        preprocessing,
        batch_size=batch_size,
        num_workers=num_workers if len(own) else 0,
        pin_memory=device.type == "cuda",
        indices=own,
    )
    work = model, loader, preprocessing, device, amp_dtype, log, log_every
    if features is None:
        rows = np.empty((0, model.embedding_size), np.float32)
        with stop.agreement() if stop else contextlib.nullcontext():
            if len(own):
                rows = extract(*work, stop.is_asked if stop else None)
        embeddings = gather_rows(rows, world, device)
    else:
        if len(own):
            writer = FeatureWriter(features, own)
            try:
                extract_to(writer, *work)
            finally:
                writer.sync()
        wait_for_all(world)
        decide_on_main(world, features.finish)
        embeddings = features.read()
    wrong = first_not_finite(embeddings)
    if wrong is not None:
        raise ValueError(
            f"the embedding of {index.paths[wrong]} holds NaN or infinity: the model diverged"
        )
    return embeddings
