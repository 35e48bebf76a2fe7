"""Features of a frozen backbone, computed once and shared by all runs that train a head on them.

A folder has a file for all training images of a data set, whatever part of them is held out, and
one for its test images. Each is a `FeatureFile` whose name ends in the fingerprint of what it
depends on, so that other weights, sizes or views have other files; changed images are computed
again. One process computes at a time, and others that need the file wait for its lock.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metric_learning.common.fingerprint import relative_paths
from metric_learning.common.locks import locked
from metric_learning.common.log import log
from metric_learning.engine.embed.embedding import (
    evaluation_mode,
    keep_rows,
    logged,
    missing_rows,
    refuse_not_finite,
)
from metric_learning.engine.embed.features import FeatureFile
from metric_learning.engine.embed.network import describe_inputs, hash_backbone
from metric_learning.engine.options.parts import DataOptions, MachineOptions, ReadingOptions
from metric_learning.engine.parallel.devices import casting
from metric_learning.engine.run.signals import acting_signals
from metric_learning.models import EmbeddingModel, changed_options
from metric_learning.reader import ImageSet
from metric_learning.reader.augment import Augmentation
from metric_learning.reader.batches.loader import Sampler
from metric_learning.reader.batches.views import FeatureBatches, view_loader
from metric_learning.reader.preprocessing import Preprocessing
from metric_learning.reader.sets.folds import NONE
from metric_learning.reader.sets.image_set import DECODER

CROPS_AT_ONCE = 64  # in the network, when features are computed
ROWS_AT_ONCE = 4096  # in the head, when images are tested
DIGITS = 16  # of the fingerprint in the name of a file
LOG_EVERY = 20  # batches, when features are computed


@dataclass(frozen=True)
class KeptViews:
    """Features of the images of a split, `rows` (n,) int64 of a file (N, 1 + V, F) float32.

    The first of each is that of its test view, the others are those of its augmented views.
    """

    features: np.ndarray
    rows: np.ndarray


@dataclass(frozen=True)
class FrozenFeatures:
    """Features of the images that a run trains on, and of those that it tests, if any."""

    train: KeptViews
    test: KeptViews | None

    def batches(
        self, labels: np.ndarray, sampler: Sampler, seed: int, steps: range
    ) -> FeatureBatches:
        """Return this rank's training batches; `labels` (n,) are those of the training images."""
        return FeatureBatches(
            self.train.features[:, 1:], self.train.rows, labels, sampler, seed, steps
        )

    @torch.inference_mode()
    def embed_test(self, model: EmbeddingModel, machine: MachineOptions) -> np.ndarray:
        """Return the embeddings of the tested images, (N, D) float32, in their order."""
        assert self.test is not None
        top, parts = model.top, []
        num_parts = math.ceil(len(self.test.rows) / ROWS_AT_ONCE)
        with evaluation_mode(top), casting(machine.device, None, False):
            for rows in np.array_split(self.test.rows, num_parts):
                features = torch.from_numpy(self.test.features[rows, 0])  # BxF
                parts.append(top(features.to(machine.device)).float().cpu().numpy())
        return np.concatenate(parts)


def open_frozen(
    model: EmbeddingModel,
    sets: Mapping[str, ImageSet],
    data: DataOptions,
    preprocessing: Preprocessing,
    reading: ReadingOptions,
    machine: MachineOptions,
) -> FrozenFeatures | None:
    """Return the features of the images of a run, computed where they are not kept.

    None where no folder is to keep any.

    Raises:
        ImageError: an image is not there or broken.
        ValueError: a file is damaged, or a feature is not finite.
        OSError: the folder cannot be written, or the disk is too small.
    """
    if reading.features_dir is None:
        return None
    make_folder(Path(reading.features_dir))
    keeper = _Keeper(model, preprocessing, reading, machine)
    whole = sets["train"]
    if "val" in data.splits:
        whole = replace(data, val_fold=NONE).load("train").require_whole()

    with acting_signals():  # computing may take long, and goes on where it was
        features = keeper.keep(whole, reading.views)
        row_of = {path: row for row, path in enumerate(whole.paths)}
        kept = {
            split: KeptViews(features, np.array([row_of[path] for path in image_set.paths]))
            for split, image_set in sets.items()
            if split != "test"
        }
        if "test" in sets:
            features = keeper.keep(sets["test"], 0)
            kept["test"] = KeptViews(features, np.arange(len(features)))
    return FrozenFeatures(kept["train"], kept.get("val", kept.get("test")))


def make_folder(folder: Path) -> None:
    """Make the folder of features, or raise OSError before the work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise OSError(
            f"cannot write to --features_dir={folder} ({error.strerror}): choose another folder"
        ) from error


def known_augmentation(augmentation: Augmentation) -> dict[str, Any]:
    """Return what of an augmentation features of augmented views depend on.

    What came after the first two is left out where it is as by default, as it is in files of then.
    """
    values, defaults = asdict(augmentation), asdict(Augmentation())
    always = ("min_crop_area", "horizontal_flip")
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in values.items()
        if name in always or value != defaults[name]
    }


@dataclass(frozen=True)
class _Keeper:
    """Computes and keeps features of image sets."""

    model: EmbeddingModel
    preprocessing: Preprocessing
    reading: ReadingOptions
    machine: MachineOptions

    def say(self, line: str) -> None:
        """Log a line, on the first process."""
        if self.machine.world.is_main:
            log(line)

    def keep(self, image_set: ImageSet, num_views: int) -> np.ndarray:
        """Return the features of images in views, (N, 1 + V, F) float32, mapped from their file."""
        about = self.depends_on(num_views) | {"images": f"{image_set.name}, {image_set.split}"}
        path = Path(str(self.reading.features_dir)) / self.name_of(about, image_set)
        views, size = 1 + num_views, self.model.feature_size
        shown = f"{path}, kept features of --trainable=head,"
        file = FeatureFile(path, about, image_set, views * size, self.reading.verify, shown)

        world = self.machine.world
        with contextlib.ExitStack() as stack:
            if world.is_main:
                reason = f"another process computes {path}"
                stack.enter_context(locked(path.with_suffix(".lock"), log, reason))
            missing = missing_rows(file, world, self.say)
            if len(missing):
                self.say(f"computing {len(missing)} x {views} features of {size} into {path}")
            own = missing[world.rank :: world.size]
            work = self.compute(image_set, own, num_views)
            return keep_rows(work, file, own, world).reshape(-1, views, size)

    def depends_on(self, num_views: int) -> dict[str, Any]:
        """What features depend on beside the images; the file beside them records it."""
        changed = changed_options(self.model.options)
        options = [f"{name} {value}" for name, value in changed.items() if name != "feature_norm"]

        pipeline = self.preprocessing
        augmented = {"views": num_views, **known_augmentation(pipeline.augmentation)}
        return {
            "weights": hash_backbone(self.model.backbone),
            "model": ", ".join([self.model.name, *options]),
            "preprocessing": describe_inputs(pipeline),
            "decoder": DECODER,
            "precision": str(torch.float32),
            **(augmented if num_views else {}),
        }

    def name_of(self, about: Mapping[str, Any], image_set: ImageSet) -> str:
        """Name the file of features: for people, and by what it depends on and whose they are."""
        text = json.dumps([about, relative_paths(image_set.paths)])
        digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:DIGITS]
        model = self.model.name.replace("/", "_").replace(":", "_")
        return f"{model}_{image_set.name}_{image_set.split}_{digest}.npy"

    def compute(self, image_set: ImageSet, rows: np.ndarray, num_views: int) -> Iterator[Any]:
        """Yield features of rows (n,) of images, (B, (1 + V) F) float32."""
        views = 1 + num_views
        batch_size = max(1, CROPS_AT_ONCE // views)
        machine = replace(self.machine, amp_dtype=None, tf32=False)
        loader = view_loader(
            image_set,
            self.preprocessing,
            num_views,
            rows=rows,
            batch_size=batch_size,
            num_workers=min(machine.num_workers, len(rows) // batch_size),
            pin_memory=machine.device.type == "cuda",
        )

        backbone: Iterable[np.ndarray] = logged(
            self.model.backbone, loader, self.preprocessing, machine, self.say, LOG_EVERY
        )
        for number, features in enumerate(backbone):  # (B (1 + V))xF
            own = rows[number * batch_size : (number + 1) * batch_size]
            flat = features.reshape(len(own), -1)
            refuse_not_finite(flat, [image_set.paths[row] for row in own])
            yield flat
