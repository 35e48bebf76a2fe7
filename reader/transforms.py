"""Image transforms: an RGB image becomes a normalised (3, S, S) float32 array.

`reference_*` are the reference's: OpenCV's Lanczos over 8x8 pixels without antialiasing.
`standard_*` are torchvision's, antialiased. Both draw their training crops from the same helper.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Longer images are cut to this ratio around their centre before the short side is resized:
# a 1 x 5000 strip enlarged in full would take hundreds of megabytes and be cropped anyway.
_MAX_ASPECT = 16


def reference_train(
    rgb: np.ndarray,
    crop_size: int,
    rng: np.random.Generator,
    *,
    min_crop_area: float = 0.08,
    horizontal_flip: bool = True,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> np.ndarray:
    """Return a random crop, resized with Lanczos4 and mirrored every other time.

    Args:
        rgb: (H, W, 3) uint8 image of any size.
        crop_size: S, side of the result in pixels.
        rng: source of the random draws.
        min_crop_area: smallest area of the crop, as a fraction of the image.
        horizontal_flip: mirror with probability 1/2.
        mean: per channel, of values in 0..1.
        std: per channel, of values in 0..1.

    Shape:
        returns: (3, S, S) float32.
    """
    top, left, height, width = random_box(rgb.shape[0], rgb.shape[1], rng, min_crop_area)
    box = rgb[top : top + height, left : left + width]
    crop = cv2.resize(box, (crop_size, crop_size), interpolation=cv2.INTER_LANCZOS4)
    if horizontal_flip and rng.random() < 0.5:
        crop = crop[:, ::-1]
    return _normalise(crop.transpose(2, 0, 1), mean, std)


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
    height, width = _resized_shape(rgb, crop_size)
    resized = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_LANCZOS4)
    top, left = (height - crop_size) // 2, (width - crop_size) // 2
    crop = resized[top : top + crop_size, left : left + crop_size]
    return _normalise(crop.transpose(2, 0, 1), mean, std)


def standard_train(
    rgb: np.ndarray,
    crop_size: int,
    rng: np.random.Generator,
    *,
    min_crop_area: float = 0.08,
    horizontal_flip: bool = True,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> np.ndarray:
    """Return a random crop, resized with antialiased bilinear interpolation, perhaps mirrored.

    Arguments and result are those of `reference_train`.
    """
    box = random_box(rgb.shape[0], rgb.shape[1], rng, min_crop_area)
    image = functional.resized_crop(
        _to_tensor(rgb), *box, size=[crop_size, crop_size], antialias=True
    )
    crop = image.numpy()
    if horizontal_flip and rng.random() < 0.5:
        crop = crop[:, :, ::-1]
    return _normalise(crop, mean, std)


def standard_eval(
    rgb: np.ndarray,
    crop_size: int,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> np.ndarray:
    """Return the central crop after antialiased bicubic resizing of the short side to S.

    Arguments and result are those of `reference_eval`.
    """
    rgb = _limit_aspect(rgb)
    image = functional.resize(
        _to_tensor(rgb),
        list(_resized_shape(rgb, crop_size)),
        interpolation=InterpolationMode.BICUBIC,
        antialias=True,
    )
    crop = functional.center_crop(image, [crop_size, crop_size])
    return _normalise(crop.numpy(), mean, std)


TRANSFORMS: dict[str, tuple[Callable[..., np.ndarray], Callable[..., np.ndarray]]] = {
    "reference": (reference_train, reference_eval),
    "standard": (standard_train, standard_eval),
}


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


def _resized_shape(rgb: np.ndarray, short_side: int) -> tuple[int, int]:
    """Return the size with the given short side and the long side rounded."""
    height, width = rgb.shape[:2]
    scale = short_side / min(height, width)
    return round(height * scale), round(width * scale)


def _limit_aspect(rgb: np.ndarray) -> np.ndarray:
    """Return the image, or its centre where one side is far longer than the other."""
    height, width = rgb.shape[:2]
    longest = _MAX_ASPECT * min(height, width)
    top, left = max(height - longest, 0) // 2, max(width - longest, 0) // 2
    return rgb[top : top + longest, left : left + longest]


def _to_tensor(rgb: np.ndarray) -> torch.Tensor:
    """Return the image as a (3, H, W) uint8 tensor."""
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1)


def _normalise(crop: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Map (3, S, S) values 0..255 to (value / 255 - mean) / std, as contiguous float32."""
    scale = 1 / (255 * np.asarray(std))
    shift = np.asarray(mean) / np.asarray(std)
    image = np.array(crop, dtype=np.float32, order="C")
    image *= scale.astype(np.float32)[:, None, None]
    image -= shift.astype(np.float32)[:, None, None]
    return image
