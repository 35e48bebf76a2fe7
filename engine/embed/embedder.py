"""A model ready to embed images, and the images that eval, infer and the report work on."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from metric_learning.engine.embed.embedding import embed_images, readable_rows
from metric_learning.engine.embed.features import FeatureFile
from metric_learning.engine.embed.load import load_parts
from metric_learning.engine.embed.network import describe_inputs
from metric_learning.engine.options.evaluation import (
    EmbeddingOptions,
    default_flags,
    settle_embedding,
)
from metric_learning.engine.parallel.world import World
from metric_learning.models import changed_options
from metric_learning.models.weights.fingerprint import hash_tensors
from metric_learning.reader import ImageSet, describe_sets
from metric_learning.reader.sets.image_set import DECODER, MAX_PIXELS
from metric_learning.reader.sets.plain_images import image_set_of, is_one_image

COLUMNS = ("image", "bytes", "path")  # of a batch of rows, as Ray Data gives it
EMBEDDING = "embedding"  # the column that is added to it


class Embedder:
    """A model with its weights and its image pipeline, ready to embed images on its device.

    Args:
        file: a checkpoint of a training, or weights that infer.py --export wrote.
        device: auto (a GPU if there is one), cpu, cuda, cuda:1 and so on.
        batch_size: images that the network takes at once.
        num_workers: processes that read images; 0: this one alone.
        max_pixels: most pixels of an image file, in millions.
        tta_flip: average the embedding of an image with that of its mirror image.
        tta_scales: scales of an image whose embeddings are averaged; empty: it is as it is.

    Attributes:
        work: what it is, where it computes, and what its checkpoint says of it.
        model: the network, in evaluation mode.
        preprocessing: the image pipeline that it was trained with.
        class_layer: a stage-1 loss with its class weights, or None where there is none.
        source: a line about where the weights come from and what of them was left out.

    Raises:
        ValueError: the file holds no weights, or does not say of which model.
        OSError: it cannot be read.
    """

    def __init__(
        self,
        file: str | PathLike[str],
        *,
        device: str = "auto",
        batch_size: int = 50,
        num_workers: int = 0,
        max_pixels: int = MAX_PIXELS,
        tta_flip: bool = False,
        tta_scales: tuple[float, ...] = (),
    ) -> None:
        given = {"pretrained_model": str(file), "device": device, "max_pixels": max_pixels}
        views = {"tta_flip": tta_flip, "tta_scales": tuple(tta_scales)}
        flags = default_flags(**given, **views, batch_size=batch_size, num_workers=num_workers)
        work = settle_embedding(flags, World(), is_quiet=True)
        if not work.meta:
            raise ValueError(
                f"{file} does not say of which model it holds the weights: expected a checkpoint "
                "of a training; `metric-learning fetch-weights --convert` makes one of weights of "
                "others"
            )
        self._load(work)

    @classmethod
    def of(cls, work: EmbeddingOptions) -> Embedder:
        """Load the model of settled options; ValueError where the weights do not fit it."""
        embedder = cls.__new__(cls)
        embedder._load(work)
        return embedder

    def _load(self, work: EmbeddingOptions) -> None:
        self.work = work
        self.model, self.preprocessing, self.class_layer, self.source = load_parts(work)

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
            images: N paths, contents of files, Pillow images or arrays (H, W, 3) uint8 RGB, or one
                of them; or a mapping with a column `image`, `bytes` or `path` of them, as Ray
                Data's map_batches gives.

        Returns:
            (N, D) float32, not normalised, in their order; for a mapping, a dict of its columns
            and of `embedding`.

        Raises:
            ImageError: an image cannot be read; the message names it.
            ValueError: something is no image, or a mapping has no such column.
        """
        if isinstance(images, Mapping):
            column = next((name for name in COLUMNS if name in images), None)
            if column is None:
                *others, last = COLUMNS
                expected = f"{', '.join(others)} or {last}"
                raise ValueError(f"expected a column {expected}, found {[*images]}")
            return {**images, EMBEDDING: self.embed_some(list(images[column]))}
        return self.embed_some(images)

    def embed_some(self, images: Any) -> np.ndarray:
        """Embed images as a call does: (N, D) float32; a mapping is none of them.

        A call does not call itself: Ray Data, which wraps the class, lets in one call at a time.
        """
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


def load(file: str | PathLike[str], **options: Any) -> Embedder:
    """Load a model with its weights and its image pipeline; options and errors as of `Embedder`."""
    return Embedder(file, **options)


def open_split(work: EmbeddingOptions) -> tuple[Embedder, ImageSet]:
    """Load the model and list its images, and say what they are."""
    embedder = Embedder.of(work)
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
