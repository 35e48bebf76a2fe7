"""The parts of a model that embeds images, of its weights file."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from metric_learning.engine.embed.class_layer import load_class_layer
from metric_learning.engine.embed.network import build_network, preprocessing_of
from metric_learning.engine.options.evaluation import AverageOptions, EmbeddingOptions
from metric_learning.engine.options.parts import ModelOptions
from metric_learning.engine.parallel.devices import place
from metric_learning.models import EmbeddingModel, average_with, load_weights
from metric_learning.models.weights.fingerprint import RANDOM, hash_weights
from metric_learning.reader.preprocessing import Preprocessing


class Parts(NamedTuple):
    """What an `Embedder` is made of; see there."""

    model: EmbeddingModel
    preprocessing: Preprocessing
    class_layer: Any
    source: str


def load_parts(work: EmbeddingOptions) -> Parts:
    """Load a model and its weights; ValueError where the weights do not fit the model."""
    path, name = work.weights, work.model.model
    torch.manual_seed(work.machine.seed)
    model = build_network(work.model)
    source = f"{name} with random weights"
    if path != RANDOM:
        report = load_weights(model, path)
        # The exponent of gem is part of the backbone, and as good at 3 as it starts.
        lacking = [key for key in report.missing if not key.startswith("backbone.")]
        if lacking:
            raise ValueError(
                f"{path} lacks {', '.join(lacking)}: give the --embedding_size and --feature_norm "
                "it has"
            )
        source = f"{name}, {len(report.loaded)} tensors of {path} ({report.source}){report.remarks}"

    class_layer = None
    if work.average is None:
        class_layer = load_class_layer(path, work.meta, model, work.class_dim)
    else:
        source += f"; {take_average(model, work.average, work.model)}"
    if class_layer is not None:
        class_layer.to(work.machine.device)
    if {"mean", "std"} <= set(work.meta):
        model.mean, model.std = tuple(work.meta["mean"]), tuple(work.meta["std"])
    preprocessing = preprocessing_of(work.model, model, work.machine.max_pixels)
    place(model, work.machine.device)
    return Parts(model.eval(), preprocessing, class_layer, source)


def take_average(model: EmbeddingModel, average: AverageOptions, options: ModelOptions) -> str:
    """Average a model with the start of its training, in place, and say so.

    Raises ValueError where the start is not there, other weights, or lacks some of the network.
    """
    share, path = average.share, average.start
    try:
        digest = hash_weights(path)
    except FileNotFoundError:
        raise ValueError(
            f"--average_with_start: {path}, which the training started from, is not there: say "
            "where it is now by --start=FILE"
        ) from None
    if average.digest not in (None, digest):
        raise ValueError(
            f"--average_with_start: {path} holds other weights than those that the training "
            "started from: give them as --start=FILE"
        )

    start = build_network(options)
    missing = [key for key in load_weights(start, path).missing if not key.startswith("backbone.")]
    if missing:
        raise ValueError(
            f"--average_with_start: {path} lacks {', '.join(missing)}, which the training added: "
            "only a network that is whole before and after can be averaged"
        )
    average_with(model, start, share)
    said = "" if average.digest else ", whose weights no digest confirms"
    return f"{1 - share:g} of them and {share:g} of {path}{said}"
