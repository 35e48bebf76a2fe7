"""How images become network inputs, as a value that is checked once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from metric_learning.reader.sets.image_set import MAX_PIXELS, Decoding
from metric_learning.reader.transforms import MAX_ASPECT, TRANSFORMS, v1_short_side

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
ALPHA_WORDS = {
    "drop": "drop alpha, so that transparent pixels have the colour that is stored",
    "white": "compose transparent pixels on white",
}


@dataclass(frozen=True)
class Preprocessing:
    """How images become network inputs.

    Raises:
        ValueError: an unknown transform or a size or area out of range.
    """

    transform: str  # a key of `reader.transforms.TRANSFORMS`
    crop_size: int  # S, side of the network input in pixels
    mean: tuple[float, ...]  # per channel, of values in 0..1
    std: tuple[float, ...]  # per channel, of values in 0..1
    min_crop_area: float = 0.08  # smallest area of a training crop, as a fraction of the image
    horizontal_flip: bool = True  # mirror every other training image
    max_pixels: int = MAX_PIXELS  # most pixels of an image file, in millions

    def __post_init__(self) -> None:
        if self.transform not in TRANSFORMS:
            raise ValueError(
                f"expected a transform of {', '.join(TRANSFORMS)}, got {self.transform}: "
                "change --transform"
            )

        if self.crop_size < 1:
            raise ValueError(
                f"expected an image size of 1 pixel or more, got {self.crop_size}: "
                "change --image_shape"
            )

        if not 0 < self.min_crop_area <= 1:
            raise ValueError(
                "expected a smallest crop area above 0 and up to 1 (a fraction of the image), "
                f"got {self.min_crop_area}: change --min_crop_area"
            )

    @cached_property
    def decoding(self) -> Decoding:
        """How image files become pixels."""
        return Decoding(TRANSFORMS[self.transform].alpha, self.max_pixels)

    def steps(self) -> list[str]:
        """Say how a test image becomes a network input, for who does it without this project."""
        size = self.crop_size
        short_side = v1_short_side(size) if self.transform == "v1" else size
        long_side, resizing, rounding = WORDS[self.transform]
        return [
            "decode the image to 8-bit RGB and turn it upright, as its EXIF orientation tells; "
            f"{ALPHA_WORDS[self.decoding.alpha]}",
            f"where one side is more than {MAX_ASPECT} times the other, keep {MAX_ASPECT} times "
            "the other of it, at its centre (first pixel: half of the rest, rounded down)",
            f"resize to a short side of {short_side} pixels and a long side in proportion, "
            f"{long_side}, with {resizing}, to 8-bit values",
            f"crop the central {size} x {size} pixels (first pixel: half of the rest, {rounding})",
            f"divide by 255, subtract {list(self.mean)}, divide by {list(self.std)} (R, G, B)",
            f"stack as float32 of (batch, 3, {size}, {size}): NCHW, channels R, G, B",
        ]
