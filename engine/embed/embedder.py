"""A model ready to embed images, and the images that eval, infer and the report work on."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metric_learning.engine.embed.class_layer import load_class_layer
from metric_learning.engine.embed.embedding import embed_images, readable_rows
from metric_learning.engine.embed.features import FeatureFile
from metric_learning.engine.embed.network import (
    build_network,
    describe_inputs,
    preprocessing_of,
)
from metric_learning.engine.options.evaluation import AverageOptions, EmbeddingOptions
from metric_learning.engine.options.parts import ModelOptions
from metric_learning.engine.parallel.devices import place
from metric_learning.models import EmbeddingModel, average_with, changed_options, load_weights
from metric_learning.models.weights.fingerprint import RANDOM, hash_tensors, hash_weights
from metric_learning.reader import ImageSet, describe_sets
from metric_learning.reader.preprocessing import Preprocessing
from metric_learning.reader.sets.image_set import DECODER
from metric_learning.reader.sets.plain_images import image_set_of, is_one_image

COLUMNS = ("image", "path")  # of a batch of rows, as Ray Data gives it
EMBEDDING = "embedding"  # the column that is added to it


@dataclass(frozen=True)
class Embedder:
    """A model in evaluation mode on its device, ready to embed images.

    Attributes:
        work: what it is, where it computes, and what its checkpoint says of it.
        preprocessing: the image pipeline that it was trained with.
        class_layer: a stage-1 loss with its class weights, or None where there is none.
        source: a line about where the weights come from and what of them was left out.
    """

    work: EmbeddingOptions
    model: EmbeddingModel
    preprocessing: Preprocessing
    class_layer: Any
    source: str

    @cached_property
    def depends_on(self) -> dict[str, str | int]:
        """What embeddings depend on beside the images; all that is kept of them records it."""
        model = self.model
        changed = [f"{name} {value}" for name, value in changed_options(model.options).items()]
        return {
            "weights": hash_tensors(model.state_dict()),
            "model": ", ".join([model.name, *changed]),
            "preprocessing": describe_inputs(self.preprocessing),
            "decoder": DECODER,
            "precision": self.work.machine.precision,
        }

    def __call__(self, images: Any) -> Any:
        """Embed images.

        Args:
            images: N paths, Pillow images or arrays (H, W, 3) uint8 RGB, or one of them; or a
                mapping with a column `image` or `path` of them, as Ray Data's map_batches gives.

        Returns:
            (N, D) float32, not normalised, in their order; for a mapping, a dict of its columns
            and of `embedding`.

        Raises:
            ImageError: an image cannot be read; the message names it.
            ValueError: something is no image, or a mapping has neither column.
        """
        if isinstance(images, Mapping):
            column = next((name for name in COLUMNS if name in images), None)
            if column is None:
                raise ValueError(f"expected a column {' or '.join(COLUMNS)}, found {[*images]}")
            return {**images, EMBEDDING: self(list(images[column]))}

        listed = [images] if is_one_image(images) else list(images)
        if not listed:
            return np.empty((0, self.model.embedding_size), np.float32)
        return np.asarray(self.embed(image_set_of(listed, self.preprocessing.decoding)))

    def embed_readable(
        self, image_set: ImageSet, on_bad_image: str
    ) -> tuple[np.ndarray, ImageSet, dict[str, str]]:
        """Embed the images that can be read: (M, D) float32, these images, path -> error of others.

        An unreadable image is left out with `on_bad_image` "skip", otherwise an ImageError.
        """
        broken: dict[str, str] = {}
        embeddings = self.embed(image_set, broken=broken if on_bad_image == "skip" else None)
        rows = readable_rows(image_set, broken)
        return embeddings[rows], image_set.select(rows), broken

    def embed(
        self,
        image_set: ImageSet,
        features: FeatureFile | None = None,
        broken: dict[str, str] | None = None,
    ) -> np.ndarray:
        """Embed images as the options say, see `embed_images`: (N, D) float32."""
        return embed_images(
            self.model,
            image_set,
            self.preprocessing,
            self.work.machine,
            self.work.batch_size,
            features=features,
            log=self.work.say,
            log_every=self.work.display_iter_step,
            broken=broken,
        )


def load_embedder(work: EmbeddingOptions) -> Embedder:
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
    return Embedder(work, model.eval(), preprocessing, class_layer, source)


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


def open_split(work: EmbeddingOptions) -> tuple[Embedder, ImageSet]:
    """Load the model and list its images, and say what they are."""
    embedder = load_embedder(work)
    work.say(embedder.source)
    return embedder, open_images(work)


def open_images(
    work: EmbeddingOptions, may_miss: bool = False, may_repeat: bool = False
) -> ImageSet:
    """List the images of the split, say what they are, and require them, see `require_whole`."""
    image_set = work.data.load(work.split)
    for line in describe_sets([image_set]):
        work.say(line)

    other = {"train": "test", "test": "train"}.get(work.split)
    if other and getattr(work.data, f"{other}_classes"):
        with contextlib.suppress(FileNotFoundError):  # it may lie on another machine
            names = set(work.data.load(other).class_names.values())
            shared = names.intersection(image_set.class_names.values())
            work.say(f"{len(shared)} of these classes are among the {len(names)} of {other}")
    return image_set.require_whole(may_miss, may_repeat)


def open_features(
    file: str, embedder: Embedder, image_set: ImageSet, verify: bool = False
) -> FeatureFile:
    """Return the file of --features for the embeddings of images."""
    about = {**embedder.depends_on, "images": f"{image_set.name}, {image_set.split}"}
    return FeatureFile(Path(file), about, image_set, embedder.model.embedding_size, verify)
