"""How training images differ from one time to the next: their crops, and what is done to these.

Crops are drawn as `transforms.random_crop` does. What is done to them is torchvision's, by its
functional forms: their parameters are drawn here, from the generator that the crop was drawn from,
so that torch's global random state has no part in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from metric_learning.common.sizes import Size, sides
from metric_learning.reader.transforms import (
    CROP_ASPECT,
    Crop,
    random_crop,
    resized_shape,
    to_rgb,
    to_tensor,
    within_aspect,
)

if TYPE_CHECKING:
    import torch  # as is torchvision, imported where an image is changed: they take seconds

TRAIN_CROPS = ("random_resized", "random")
# Of random erasing, as in torchvision: area as a fraction of the crop, height by width, and how
# often a rectangle is drawn until one fits in.
ERASED_AREA, ERASED_ASPECT, ERASING_TRIES = (0.02, 0.33), (0.3, 3.3), 10
STRENGTHS = 31  # of the operations of RandAugment: --rand_augment=N,M has M of 0 to 30


@dataclass(frozen=True)
class Augmentation:
    """How training images are cropped, and what is done to their crops; see the flags.

    Attributes:
        min_crop_area: smallest area of a crop, as a fraction of the image.
        horizontal_flip: whether every other crop is mirrored.
        crop_aspect: least and largest width by height of a crop, by those of the network's input.
        train_crop: "random_resized", or "random", a crop of the size of the network's input.
        resize_first: the short side in pixels, or height and width, of the image that is cropped;
            empty: those it has.
        color_jitter: brightness, contrast, saturation and hue; empty: none.
        rand_augment: number of operations and their strength; empty: none.
        random_erasing: probability that a rectangle of the crop is erased.

    Raises:
        ValueError: an area, aspect or size out of range.
    """

    min_crop_area: float = 0.08
    horizontal_flip: bool = True
    crop_aspect: tuple[float, float] = CROP_ASPECT
    train_crop: str = "random_resized"
    resize_first: tuple[int, ...] = ()
    color_jitter: tuple[float, ...] = ()
    rand_augment: tuple[int, ...] = ()
    random_erasing: float = 0.0

    def __post_init__(self) -> None:
        assert self.train_crop in TRAIN_CROPS
        if not 0 < self.min_crop_area <= 1:
            raise ValueError(
                "expected a smallest crop area above 0 and up to 1 (a fraction of the image), "
                f"got {self.min_crop_area}: change --min_crop_area"
            )
        if self.train_crop == "random" and not self.resize_first:
            raise ValueError(
                "--train_crop=random crops without resizing: give the size to resize images to "
                "before that, such as --resize_first=256"
            )

    @property
    def changes_crops(self) -> bool:
        """Whether anything is done to crops."""
        return bool(self.color_jitter or self.rand_augment or self.random_erasing)

    def check_size(self, crop_size: Size) -> None:
        """Raise ValueError where images are resized to less than the crop that is taken of them."""
        if self.train_crop != "random":
            return
        height, width = sides(crop_size)
        found = self.resize_first
        needed = (height, width) if len(found) == 2 else (max(height, width),)
        if any(side < least for side, least in zip(found, needed, strict=True)):
            size = ",".join(map(str, found))
            crop = f"{height}" if height == width else f"{height} x {width}"
            raise ValueError(
                f"--resize_first={size} is smaller than the crop of {crop} pixels that "
                "--train_crop=random takes: give as much or more"
            )

    def resize(
        self, rgb: np.ndarray, resize: Callable[[np.ndarray, int, int], np.ndarray]
    ) -> np.ndarray:
        """Resize an image (H, W, 3) uint8 before it is cropped, where that is to be."""
        if not self.resize_first:
            return rgb
        if len(self.resize_first) == 2:
            return resize(rgb, *self.resize_first)
        rgb = within_aspect(rgb)
        height, width = rgb.shape[:2]
        return resize(rgb, *resized_shape(height, width, self.resize_first[0]))

    def draw_crop(self, height: int, width: int, rng: np.random.Generator, crop_size: Size) -> Crop:
        """Draw the crop of an image of this size, in pixels."""
        crop_height, crop_width = sides(crop_size)
        if self.train_crop == "random_resized":
            area, is_mirrored = self.min_crop_area, self.horizontal_flip
            least, largest = (value * (crop_width / crop_height) for value in self.crop_aspect)
            return random_crop(height, width, rng, area, is_mirrored, (least, largest))
        top = int(rng.integers(height - crop_height + 1))
        left = int(rng.integers(width - crop_width + 1))
        is_mirrored = bool(self.horizontal_flip and rng.random() < 0.5)
        return Crop(top, left, crop_height, crop_width, is_mirrored)

    def change(
        self, crop: np.ndarray, rng: np.random.Generator, mean: Sequence[float]
    ) -> np.ndarray:
        """Change a crop (S, T, 3) uint8: its colours, by RandAugment, by erasing; in this order.

        A rectangle is filled with the `mean` (of values in 0..1), rounded to a grey level: with
        what is nearest to 0 once it is normalised, torchvision's default.
        """
        if not self.changes_crops:
            return crop
        image = to_tensor(crop)
        if self.color_jitter:
            image = jitter_colours(image, self.color_jitter, rng)
        if self.rand_augment:
            number, strength = self.rand_augment
            image = rand_augment(image, number, strength, rng)
        if self.random_erasing and rng.random() < self.random_erasing:
            image = erase_rectangle(image, rng, [round(255 * value) for value in mean])
        return to_rgb(image)


def jitter_colours(
    image: torch.Tensor, ranges: Sequence[float], rng: np.random.Generator
) -> torch.Tensor:
    """Change brightness, contrast, saturation and hue in a random order, as v2.ColorJitter does.

    An image (3, H, W) uint8. Of the `ranges` each factor of the first three is uniform in
    max(0, 1 - r) .. 1 + r, and the shift of the hue, of at most half a turn, in -r .. r.
    """
    from torchvision.transforms.v2 import functional

    changes = (
        *(functional.adjust_brightness, functional.adjust_contrast),
        *(functional.adjust_saturation, functional.adjust_hue),
    )
    *scales, hue = ranges
    lows, highs = [*(max(0.0, 1 - r) for r in scales), -hue], [*(1 + r for r in scales), hue]
    order, factors = rng.permutation(len(changes)), rng.uniform(lows, highs)
    for number in order:
        if ranges[number]:
            image = changes[number](image, float(factors[number]))
    return image


class Operation(NamedTuple):
    """One of the operations of RandAugment.

    Attributes:
        strengths: the weakest and the strongest, None where it has none.
        is_signed: whether it is turned round half of the time.
        apply: (image, strength) -> image.
    """

    strengths: tuple[float, float] | None
    is_signed: bool
    apply: Callable[[torch.Tensor, float], torch.Tensor]


def rand_augment(
    image: torch.Tensor, num_operations: int, strength: int, rng: np.random.Generator
) -> torch.Tensor:
    """Apply random operations of RandAugment to an image (3, S, T) uint8, as torchvision does.

    Cubuk et al. 2020, https://arxiv.org/abs/1909.13719. What comes in from outside is black.
    The strength is 0 to 30, of each operation's range.
    """
    import torch

    operations = operations_of((image.shape[-2], image.shape[-1]))
    for _ in range(num_operations):
        strengths, is_signed, apply = operations[rng.integers(len(operations))]
        value = 0.0
        if strengths is not None:
            value = float(torch.linspace(*strengths, STRENGTHS)[strength])
            value = -value if is_signed and rng.random() < 0.5 else value
        image = apply(image, value)
    return image


def operations_of(size: Size) -> list[Operation]:
    """Return the operations of RandAugment on images (3, S, T) of this size."""
    from torchvision.transforms.v2 import functional as f

    still: dict[str, Any] = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]}

    def move(image: torch.Tensor, **how: Any) -> torch.Tensor:
        return f.affine(image, **still | how)

    def shear(axis: int, image: torch.Tensor, tangent: float) -> torch.Tensor:
        degrees = [0.0, 0.0]
        degrees[axis] = math.degrees(math.atan(tangent))
        return move(image, shear=degrees, center=[0, 0])

    def translate(axis: int, image: torch.Tensor, pixels: float) -> torch.Tensor:
        by = [0, 0]
        by[axis] = int(pixels)
        return move(image, translate=by)

    def of_factor(change: Callable[..., torch.Tensor]) -> Operation:
        return Operation((0.0, 0.9), True, lambda image, share: change(image, 1.0 + share))

    height, width = sides(size)
    across, down = 150 / 331 * width, 150 / 331 * height
    return [
        Operation(None, False, lambda image, _: image),
        *(Operation((0.0, 0.3), True, partial(shear, axis)) for axis in (0, 1)),
        Operation((0.0, across), True, partial(translate, 0)),
        Operation((0.0, down), True, partial(translate, 1)),
        Operation((0.0, 30.0), True, lambda image, degrees: f.rotate(image, degrees)),
        *(of_factor(change) for change in (f.adjust_brightness, f.adjust_saturation)),
        *(of_factor(change) for change in (f.adjust_contrast, f.adjust_sharpness)),
        Operation((8.0, 4.0), False, lambda image, bits: f.posterize(image, round(bits))),
        Operation((1.0, 0.0), False, lambda image, share: f.solarize(image, 255 * share)),
        Operation(None, False, lambda image, _: f.autocontrast(image)),
        Operation(None, False, lambda image, _: f.equalize(image)),
    ]


def erase_rectangle(
    image: torch.Tensor, rng: np.random.Generator, colour: Sequence[int]
) -> torch.Tensor:
    """Fill a random rectangle of an image (3, H, W) uint8, as v2.RandomErasing does.

    Zhong et al. 2020, https://arxiv.org/abs/1708.04896. Its area and the logarithm of its height by
    its width are uniform. Where none of ten fits in, the image stays as it is.
    """
    height, width = image.shape[-2:]
    for _ in range(ERASING_TRIES):
        area = height * width * rng.uniform(*ERASED_AREA)
        aspect = math.exp(rng.uniform(math.log(ERASED_ASPECT[0]), math.log(ERASED_ASPECT[1])))
        rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if rows < height and columns < width:
            top = int(rng.integers(height - rows + 1))
            left = int(rng.integers(width - columns + 1))
            image = image.clone()
            image[:, top : top + rows, left : left + columns] = image.new_tensor(colour)[
                :, None, None
            ]
            return image
    return image
