"""How images become network inputs, as a value that is checked once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from metric_learning.common.sizes import Size, scaled, sides
from metric_learning.reader.augment import Augmentation
from metric_learning.reader.sets.image_set import MAX_PIXELS, Decoding
from metric_learning.reader.transforms import MAX_ASPECT, TRANSFORMS, Crop, v1_covered

# What is said of a transform of test images: how it rounds the long side, how it resizes, and from
# where it crops.
WORDS = {
    "reference": (
        "rounded half to even",
        "Lanczos interpolation over 8 x 8 pixels without antialiasing (OpenCV's INTER_LANCZOS4)",
        "rounded down",
    ),
    "standard": (
        "rounded half to even",
        "antialiased bicubic interpolation (torchvision's of a uint8 tensor; Pillow's BICUBIC "
        "rounds a little differently)",
        "rounded half to even",
    ),
    "v1": (
        "rounded down",
        "antialiased bilinear interpolation (Pillow's BILINEAR)",
        "rounded half up",
    ),
}
TEST_RESIZES = ("short_side", "squash")  # how test images are resized before they are cropped
ALPHA_WORDS = {
    "drop": "drop alpha, so that transparent pixels have the colour that is stored",
    "white": "compose transparent pixels on white",
}


@dataclass(frozen=True)
class Preprocessing:
    """How images become network inputs.

    Raises:
        ValueError: an unknown transform or a size out of range.
    """

    transform: str  # a key of `reader.transforms.TRANSFORMS`
    crop_size: Size  # of the network input in pixels: a side, or height and width, S and T
    mean: tuple[float, ...]  # per channel, of values in 0..1
    std: tuple[float, ...]  # per channel, of values in 0..1
    augmentation: Augmentation = Augmentation()  # of training images
    max_pixels: int = MAX_PIXELS  # most pixels of an image file, in millions
    # What a test image covers before its central crop, by the crop's sides; None: as it is made for
    resize_ratio: float | None = None
    test_resize: str = "short_side"  # one of TEST_RESIZES
    # Views of a test image whose embeddings are averaged: mirrored ones too, and of which scales
    tta_flip: bool = False
    tta_scales: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.transform not in TRANSFORMS:
            raise ValueError(
                f"expected a transform of {', '.join(TRANSFORMS)}, got {self.transform}: "
                "change --transform"
            )

        if self.test_resize not in TEST_RESIZES:
            raise ValueError(
                f"expected a way to resize test images of {', '.join(TEST_RESIZES)}, got "
                f"{self.test_resize}: change --test_resize"
            )

        if min(sides(self.crop_size)) < 1:
            raise ValueError(
                f"expected an image size of 1 pixel or more, got {self.crop_size}: "
                "change --image_shape"
            )

        assert self.resize_ratio is None or self.resize_ratio >= 1
        self.augmentation.check_size(self.crop_size)

    @cached_property
    def decoding(self) -> Decoding:
        """How image files become pixels."""
        return Decoding(TRANSFORMS[self.transform].alpha, self.max_pixels)

    @property
    def covered(self) -> tuple[int, int]:
        """Height and width, in pixels, that a test image covers before its central crop."""
        if self.resize_ratio is not None:
            height, width = (round(self.resize_ratio * side) for side in sides(self.crop_size))
            return height, width
        return v1_covered(self.crop_size) if self.transform == "v1" else sides(self.crop_size)

    @property
    def is_squashed(self) -> bool:
        """Whether a test image is resized to what it covers, whatever its proportions."""
        return self.test_resize == "squash"

    @property
    def view_sizes(self) -> list[tuple[int, int]]:
        """Heights and widths of the inputs of the scales of a test image, in pixels."""
        return [scaled(self.crop_size, scale) for scale in self.tta_scales]

    def test_crop(self, image: np.ndarray) -> np.ndarray:
        """Return the crop of a test image (H, W, 3): (S, T, 3), uint8 both."""
        test = TRANSFORMS[self.transform].test
        return test(image, self.crop_size, self.covered, self.is_squashed)

    def resize_first(self, image: np.ndarray) -> np.ndarray:
        """Resize a training image (H, W, 3) uint8 before it is cropped, where that is to be."""
        return self.augmentation.resize(image, TRANSFORMS[self.transform].resize)

    def draw_crop(self, height: int, width: int, rng: np.random.Generator) -> Crop:
        """Draw the crop of a training image of this size, in pixels."""
        return self.augmentation.draw_crop(height, width, rng, self.crop_size)

    def train_crop(self, image: np.ndarray, crop: Crop, rng: np.random.Generator) -> np.ndarray:
        """Cut and resize a crop of a training image (H, W, 3), and change it: (S, T, 3) uint8."""
        pixels = TRANSFORMS[self.transform].train(image, crop, self.crop_size)
        return self.augmentation.change(pixels, rng, self.mean)

    def steps(self) -> list[str]:
        """Say how a test image becomes a network input, for who does it without this project."""
        height, width = sides(self.crop_size)
        _, _, rounding = WORDS[self.transform]
        return [
            "decode the image to 8-bit RGB and turn it upright, as its EXIF orientation tells; "
            f"{ALPHA_WORDS[self.decoding.alpha]}",
            *self._steps_of_resizing(),
            f"crop the central {height} x {width} pixels (first pixel: half of the rest, "
            f"{rounding})",
            f"divide by 255, subtract {list(self.mean)}, divide by {list(self.std)} (R, G, B)",
            f"stack as float32 of (batch, 3, {height}, {width}): NCHW, channels R, G, B",
        ]

    def _steps_of_resizing(self) -> list[str]:
        (height, width), (least_height, least_width) = sides(self.crop_size), self.covered
        long_side, resizing, _ = WORDS[self.transform]
        if self.is_squashed:
            return [
                f"resize height and width to {least_height} x {least_width} pixels, whatever the "
                f"proportions of the image, with {resizing}, to 8-bit values"
            ]

        resized = f"a short side of {least_height} pixels and a long side in proportion"
        if height != width:
            resized = (
                f"the least size in proportion that covers {least_height} x {least_width} pixels "
                "(height x width), its sides"
            )
        return [
            f"where one side is more than {MAX_ASPECT} times the other, keep {MAX_ASPECT} times "
            "the other of it, at its centre (first pixel: half of the rest, rounded down)",
            f"resize to {resized}, {long_side}, with {resizing}, to 8-bit values",
        ]
