"""How images become network inputs, as a value that is checked once."""

from __future__ import annotations

from dataclasses import dataclass

from reader.transforms import TRANSFORMS


@dataclass(frozen=True)
class Preprocessing:
    """How images become network inputs.

    Args:
        transform: "reference" or "standard", a key of `reader.transforms.TRANSFORMS`.
        crop_size: S, side of the network input in pixels.
        mean: per channel, of values in 0..1.
        std: per channel, of values in 0..1.
        min_crop_area: smallest area of a training crop, as a fraction of the image.
        horizontal_flip: mirror every other training image.

    Raises:
        ValueError: an unknown transform or a size or area out of range.
    """

    transform: str
    crop_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    min_crop_area: float = 0.08
    horizontal_flip: bool = True

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
