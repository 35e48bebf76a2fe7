"""Images in views, a test view and augmented ones, and batches of the features kept of these."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from metric_learning.reader.batches.loader import (
    Batch,
    EvalBatches,
    ImageLoader,
    Sampler,
    stack,
    warm_up,
)
from metric_learning.reader.preprocessing import Preprocessing
from metric_learning.reader.sets.image_set import ImageSet

# Distinct from the streams of samplers, augmentation and steps (1 to 7).
_VIEW_STREAM, _CHOICE_STREAM = 8, 9


def view_loader(
    image_set: ImageSet,
    preprocessing: Preprocessing,
    num_views: int,
    *,
    rows: np.ndarray,
    batch_size: int,
    num_workers: int,
    pin_memory: bool,
) -> ImageLoader:
    """Return images in order, those of `rows` (n,): of each its test view, then augmented ones.

    A batch has so many images, and 1 + `num_views` times as many crops. An augmented view follows
    from the row of its image and its own number alone, whatever is asked for beside it.
    """
    warm_up(preprocessing)
    batches = ViewBatches(image_set, preprocessing, rows, batch_size, num_views=num_views)
    numbers = range(-(-len(rows) // batch_size))
    return ImageLoader(batches, numbers, num_workers, pin_memory)


@dataclass(frozen=True, eq=False)
class ViewBatches(EvalBatches):
    """Batches of the images `indices` by number, in views; that of a broken image is its error."""

    num_views: int = 0

    def read(self, number: int) -> Batch:
        """Return a batch, or raise ImageError or WorkerError."""
        start = number * self.batch_size
        indices = self.indices[start : start + self.batch_size]
        crops = [crop for i in indices for crop in self._views(int(i))]
        return Batch(stack(crops), torch.from_numpy(self.image_set.labels[indices]), {})

    def _views(self, i: int) -> Iterator[np.ndarray]:
        """Yield the crops of image i, (S, T, 3) uint8 each."""
        options = self.preprocessing
        image = self.image_set.read_image(i, options.decoding)
        yield options.test_crop(image)

        image = options.resize_first(image)
        height, width = image.shape[:2]
        for view in range(self.num_views):
            rng = np.random.default_rng([_VIEW_STREAM, i, view])
            crop = options.draw_crop(height, width, rng)
            yield options.train_crop(image, crop, rng)


@dataclass(frozen=True, eq=False)
class FeatureBatches:
    """This rank's training batches of `steps`: features instead of images, of a view each.

    Which view is drawn derives from the seed, the step and the position in the global batch alone.

    Attributes:
        features: (N, V, F) float32, of V augmented views.
        rows: (n,) int64, the rows of the training images among them.
        labels: (n,) int64.
    """

    features: np.ndarray
    rows: np.ndarray
    labels: np.ndarray
    sampler: Sampler
    seed: int
    steps: range

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[Batch]:
        return map(self.read, self.steps)

    def read(self, step: int) -> Batch:
        """Return the batch of a step."""
        indices = self.sampler.batch(step)
        first = self.sampler.rank * len(indices)
        rng = np.random.default_rng([_CHOICE_STREAM, self.seed, step])
        views = rng.integers(self.features.shape[1], size=self.sampler.batch_size)

        chosen = self.features[self.rows[indices], views[first : first + len(indices)]]  # BxF
        return Batch(torch.from_numpy(chosen), torch.from_numpy(self.labels[indices]), {})
