"""Image transforms: an RGB image becomes a training crop or a normalised test image.

`reference_*` are the reference's: OpenCV's Lanczos over 8x8 pixels without antialiasing.
`standard_*` are torchvision's, antialiased. Both draw their training crops from the same helper.
Training crops stay uint8, a quarter of the bytes: `reader.device` normalises them by the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from metric_learning.reader.lanczos import resize_lanczos

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Longer images are cut to this ratio around their centre before the short side is resized:
# a 1 x 5000 strip enlarged in full would take hundreds of megabytes and be cropped anyway.
MAX_ASPECT = 16


class Crop(NamedTuple):
    """What a random crop takes of an image: a box, in pixels, and whether it is mirrored."""

    top: int
    left: int
    height: int
    width: int
    mirrored: bool


def reference_train(rgb: np.ndarray, crop: Crop, crop_size: int) -> np.ndarray:
    """Return a crop of the image, resized with Lanczos4.

    Args:
        rgb: (H, W, 3) uint8 image of any size.
        crop: a box inside the image, see `random_crop`.
        crop_size: S, side of the result in pixels.

    Shape:
        returns: (S, S, 3) uint8.
    """
    resized = resize_lanczos(_cut(rgb, crop), crop_size, crop_size)
    return cv2.flip(resized, 1) if crop.mirrored else resized


def reference_eval(
    rgb: np.ndarray,
    crop_size: int,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> np.ndarray:
    """Return the central crop of the image whose short side was resized to S with Lanczos4.

    Args:
        rgb: (H, W, 3) uint8 image of any size.
        crop_size: S, side of the result in pixels.
        mean: per channel, of values in 0..1.
        std: per channel, of values in 0..1.

    Shape:
        returns: (3, S, S) float32.
    """
    rgb = _limit_aspect(rgb)
    height, width = resized_shape(rgb.shape[0], rgb.shape[1], crop_size)
    resized = resize_lanczos(rgb, height, width)
    top, left = (height - crop_size) // 2, (width - crop_size) // 2
    crop = resized[top : top + crop_size, left : left + crop_size]
    return _normalise(crop.transpose(2, 0, 1), mean, std)


def standard_train(rgb: np.ndarray, crop: Crop, crop_size: int) -> np.ndarray:
    """Return a crop of the image, resized with antialiased bilinear interpolation.

    Arguments and result are those of `reference_train`.
    """
    resized = resize_bilinear(_to_tensor(_cut(rgb, crop)), crop_size).permute(1, 2, 0).numpy()
    return cv2.flip(resized, 1) if crop.mirrored else resized


def standard_eval(
    rgb: np.ndarray,
    crop_size: int,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> np.ndarray:
    """Return the central crop after antialiased bicubic resizing of the short side to S.

    Arguments and result are those of `reference_eval`. The whole short side is kept, whatever
    timm's `crop_pct` of a model is: what its classifiers cut off a border, a search may need.
    """
    rgb = _limit_aspect(rgb)
    image = _resize_bicubic(rgb, resized_shape(rgb.shape[0], rgb.shape[1], crop_size))
    crop = functional.center_crop(image, [crop_size, crop_size])
    return _normalise(crop.numpy(), mean, std)


# Of training images, (rgb, crop, crop_size) -> uint8, and of test images,
# (rgb, crop_size, mean, std) -> float32.
TRANSFORMS: dict[str, tuple[Callable[..., np.ndarray], Callable[..., np.ndarray]]] = {
    "reference": (reference_train, reference_eval),
    "standard": (standard_train, standard_eval),
}


def random_crop(
    height: int,
    width: int,
    rng: np.random.Generator,
    min_crop_area: float = 0.08,
    horizontal_flip: bool = True,
) -> Crop:
    """Draw the crop of an image of this size.

    Args:
        height: of the image in pixels.
        width: of the image in pixels.
        rng: source of the random draws.
        min_crop_area: smallest area of the crop, as a fraction of the image.
        horizontal_flip: mirror with probability 1/2.
    """
    box = random_box(height, width, rng, min_crop_area)
    return Crop(*box, mirrored=bool(horizontal_flip and rng.random() < 0.5))


def random_box(
    height: int, width: int, rng: np.random.Generator, min_crop_area: float
) -> tuple[int, int, int, int]:
    """Draw a crop as the reference does; it always lies inside the image.

    The width-to-height ratio r is uniform in 3/4..4/3. The area is uniform between `min_crop_area`
    of the image and the largest box of ratio r that fits in.

    Returns:
        top, left, height and width in pixels.
    """
    ratio = rng.uniform(3 / 4, 4 / 3)
    largest_area = min(1.0, width / height / ratio, height / width * ratio)
    area = rng.uniform(min(min_crop_area, largest_area), largest_area) * height * width
    box_width = min(max(int(math.sqrt(area * ratio)), 1), width)
    box_height = min(max(int(math.sqrt(area / ratio)), 1), height)
    top = int(rng.integers(height - box_height + 1))
    left = int(rng.integers(width - box_width + 1))
    return top, left, box_height, box_width


def resized_shape(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Return the size with the given short side and the long side rounded."""
    scale = short_side / min(height, width)
    return round(height * scale), round(width * scale)


def _limit_aspect(rgb: np.ndarray) -> np.ndarray:
    """Return the image, or its centre where one side is far longer than the other."""
    height, width = rgb.shape[:2]
    longest = MAX_ASPECT * min(height, width)
    top, left = max(height - longest, 0) // 2, max(width - longest, 0) // 2
    return rgb[top : top + longest, left : left + longest]


def reduce_image(rgb: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return the image at another (height, width), or itself where it has that already.

    Antialiased bicubic, as in `standard_eval`: as close to the image as area averaging (PSNR of
    crops within 0.1 dB), with more of its contrast left, in a third of the time.
    """
    if rgb.shape[:2] == shape:
        return rgb
    return np.ascontiguousarray(_resize_bicubic(rgb, shape).permute(1, 2, 0).numpy())


def resize_bilinear(image: torch.Tensor, crop_size: int) -> torch.Tensor:
    """Resize (3, H, W) uint8 to (3, S, S), antialiased, on the device of the image."""
    return functional.resize(image, [crop_size, crop_size], antialias=True)


def _resize_bicubic(rgb: np.ndarray, shape: tuple[int, int]) -> torch.Tensor:
    """Resize (H, W, 3) uint8 to (3, height, width), antialiased."""
    bicubic = InterpolationMode.BICUBIC
    return functional.resize(_to_tensor(rgb), list(shape), interpolation=bicubic, antialias=True)


def _cut(rgb: np.ndarray, crop: Crop) -> np.ndarray:
    return rgb[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]


def _to_tensor(rgb: np.ndarray) -> torch.Tensor:
    """Return the image as a (3, H, W) uint8 tensor."""
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1)


def scale_and_shift(mean: Sequence[float], std: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Return (3,) float32 s and t with (value / 255 - mean) / std = value * s - t."""
    scale = 1 / (255 * np.asarray(std))
    shift = np.asarray(mean) / np.asarray(std)
    return scale.astype(np.float32), shift.astype(np.float32)


def _normalise(crop: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Map (3, S, S) values 0..255 to (value / 255 - mean) / std, as contiguous float32."""
    scale, shift = scale_and_shift(mean, std)
    image = np.array(crop, dtype=np.float32, order="C")
    image *= scale[:, None, None]
    image -= shift[:, None, None]
    return image
