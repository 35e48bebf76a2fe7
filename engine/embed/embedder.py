"""A model ready to embed images, and the images that eval, infer and the report work on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from metric_learning.engine.embed.class_layer import load_class_layer
from metric_learning.engine.embed.embedding import embed_images
from metric_learning.engine.embed.features import FeatureFile
from metric_learning.engine.embed.network import build_network, preprocessing_of
from metric_learning.engine.options.evaluation import EmbeddingOptions
from metric_learning.engine.parallel.devices import place
from metric_learning.models import EmbeddingModel, load_weights
from metric_learning.models.weights.fingerprint import RANDOM
from metric_learning.models.weights.load import first_keys
from metric_learning.reader import ImageSet
from metric_learning.reader.preprocessing import Preprocessing


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
    meta: Mapping[str, Any]
    class_layer: Any
    source: str


def load_embedder(work: EmbeddingOptions) -> Embedder:
    """Load a model and its weights.

    Raises:
        ValueError: the weights do not fit the model.
        OSError: they cannot be read.
    """
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
        rest = report.unexpected
        left_out = f", {len(rest)} left out: {first_keys(rest)}" if rest else ""
        source = f"{name}, {len(report.loaded)} tensors of {path} ({report.source}){left_out}"

    class_layer = load_class_layer(path, work.meta, model, work.class_dim)
    if class_layer is not None:
        class_layer.to(work.machine.device)
    if work.meta:
        model.mean, model.std = tuple(work.meta["mean"]), tuple(work.meta["std"])
    preprocessing = preprocessing_of(work.model, model)
    place(model, work.machine.device)
    return Embedder(model.eval(), preprocessing, work.meta, class_layer, source)


def open_split(work: EmbeddingOptions) -> tuple[Embedder, ImageSet]:
    """Load the model and list its images, and say what they are."""
    embedder = load_embedder(work)
    work.say(embedder.source)
    image_set = work.data.load(work.split)
    what = f"{len(image_set)} images of {image_set.num_classes} classes"
    work.say(f"{image_set.split}: {image_set.name}, {what}")
    return embedder, image_set


def embed_split(
    work: EmbeddingOptions,
    embedder: Embedder,
    image_set: ImageSet,
    features: FeatureFile | None = None,
) -> np.ndarray:
    """Embed images as the options say, see `embed_images`: (N, D) float32."""
    return embed_images(
        embedder.model,
        image_set,
        embedder.preprocessing,
        work.machine,
        work.batch_size,
        features=features,
        log=work.say,
        log_every=work.display_iter_step,
    )
