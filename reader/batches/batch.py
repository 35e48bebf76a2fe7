"""What workers hand over of a training step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from metric_learning.reader.sets.image_set import ImageError
from metric_learning.reader.transforms import Crop


class WholeImages(NamedTuple):
    """Images of different sizes with their crops, to be augmented on the device.

    Attributes:
        data: (n,) uint8, the images one after the other: rows of RGB pixels, or a JPEG file.
        lengths: bytes of each image.
        shapes: height and width of each image in pixels.
        crops: what is to be taken of each image.
        jpegs: the path of each image that is still a JPEG file; None: its pixels are there.
    """

    data: torch.Tensor
    lengths: list[int]
    shapes: list[tuple[int, int]]
    crops: list[Crop]
    jpegs: list[str | None]

    def part(self, start: int, stop: int) -> WholeImages:
        """Return images start..stop."""
        first = sum(self.lengths[:start])
        return WholeImages(
            self.data[first : first + sum(self.lengths[start:stop])],
            self.lengths[start:stop],
            self.shapes[start:stop],
            self.crops[start:stop],
            self.jpegs[start:stop],
        )


class Batch(NamedTuple):
    """The images of one training step.

    Attributes:
        images: (B, 3, S, S) uint8 in channels-last order, augmented but not normalised; or the
            whole images.
        labels: (B,) int64.
        broken: path -> error of the unreadable images that others were drawn for.
    """

    images: torch.Tensor | WholeImages
    labels: torch.Tensor
    broken: dict[str, str]

    def split(self, num_parts: int) -> list[Batch]:
        """Cut the batch into parts of equal size, to within one image."""
        bounds = [len(self.labels) * number // num_parts for number in range(num_parts + 1)]
        return [
            self._replace(
                images=self.images.part(start, stop)
                if isinstance(self.images, WholeImages)
                else self.images[start:stop],
                labels=self.labels[start:stop],
            )
            for start, stop in zip(bounds, bounds[1:], strict=False)
        ]


class Sample(NamedTuple):
    """One image of a batch.

    Attributes:
        image: (S, S, 3) uint8 crop; (H, W, 3) uint8 image; or (n,) uint8 JPEG file.
        label: its class.
        broken: as in `Batch`.
        shape: height and width in pixels of an image that is not cropped yet.
        crop: what is to be taken of it; None: it is a crop.
        jpeg: the path of an image that is still a JPEG file.
    """

    image: np.ndarray
    label: int
    broken: dict[str, str]
    shape: tuple[int, int] = (0, 0)
    crop: Crop | None = None
    jpeg: str | None = None


def collate_training(samples: Sequence[Sample | ImageError]) -> Batch | ImageError:
    """Stack or pack a batch, or hand on its first error: exceptions would arrive as tracebacks."""
    good: list[Sample] = []
    broken: dict[str, str] = {}
    for sample in samples:
        if isinstance(sample, ImageError):
            return sample
        good.append(sample)
        broken |= sample.broken
    labels = torch.tensor([sample.label for sample in good], dtype=torch.int64)
    crops = [sample.crop for sample in good if sample.crop is not None]
    if crops:
        flat = [sample.image.reshape(-1) for sample in good]
        images: torch.Tensor | WholeImages = WholeImages(
            torch.from_numpy(np.concatenate(flat)),
            [len(data) for data in flat],
            [sample.shape for sample in good],
            crops,
            [sample.jpeg for sample in good],
        )
    else:
        stacked = np.stack([sample.image for sample in good])
        images = torch.from_numpy(stacked).permute(0, 3, 1, 2)
    return Batch(images, labels, broken)
