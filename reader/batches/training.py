"""Training images, read and augmented by the draw; unreadable ones are replaced if wanted."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from metric_learning.reader.batches.batch import Sample
from metric_learning.reader.batches.cache import CacheError
from metric_learning.reader.preprocessing import Preprocessing
from metric_learning.reader.sets.image_set import ImageError, ImageSet, decode_image, is_whole_jpeg
from metric_learning.reader.transforms import TRANSFORMS, random_crop

# Distinct from the streams of reader/samplers.py, so that these draws are unrelated to sampling.
_AUGMENTATION_STREAM, _REPLACEMENT_STREAM = 4, 5

HAND_OVER = ("crops", "images", "files")
BAD_IMAGE_POLICIES = ("error", "skip")
# An error is raised when more of the training images than this share are broken; one may always be.
MAX_BROKEN_SHARE = 0.05
# Modes of JPEG files, as Pillow names them, that a GPU decodes as the CPU does; CMYK is not one.
DEVICE_MODES = ("RGB", "L")

# Pixels or the bytes of a JPEG file; height and width; the path of the JPEG file.
Read = tuple[np.ndarray, tuple[int, int], str | None]


@dataclass(frozen=True)
class Reading:
    """How workers read training images.

    Attributes:
        hand_over: "crops"; "images", whole ones to be cropped on the device; or "files", JPEG files
            to be decoded there too.
        on_bad_image: "error", or "skip" to draw another image of the class instead.
        prefetch: batches that each worker prepares ahead.
    """

    hand_over: str = "crops"
    on_bad_image: str = "error"
    prefetch: int = 2

    def __post_init__(self) -> None:
        assert self.hand_over in HAND_OVER
        assert self.on_bad_image in BAD_IMAGE_POLICIES


class TrainImages(Dataset):
    """Samples by (image index, draw); an unreadable image is returned as its error.

    Args:
        index: the training images.
        preprocessing: how images become network inputs.
        seed: of augmentation and replacements, which derive from it and the draw alone.
        reading: how images are read.
    """

    def __init__(
        self, index: ImageSet, preprocessing: Preprocessing, seed: int, reading: Reading
    ) -> None:
        self._index, self._preprocessing, self._seed = index, preprocessing, seed
        self._reading = reading

    def __getitem__(self, item: tuple[int, int]) -> Sample | ImageError:
        i, draw = item
        broken: dict[str, str] = {}
        try:
            image, shape, jpeg = self._read_or_replace(i, draw, broken)
        except ImageError as error:
            return error
        options = self._preprocessing
        rng = np.random.default_rng([_AUGMENTATION_STREAM, self._seed, draw])
        crop = random_crop(*shape, rng, options.min_crop_area, options.horizontal_flip)
        label = int(self._index.labels[i])
        if self._reading.hand_over == "crops":
            cut = TRANSFORMS[options.transform][0]
            return Sample(cut(image, crop, options.crop_size), label, broken)
        return Sample(image, label, broken, shape, crop, jpeg)

    def _read_or_replace(self, i: int, draw: int, broken: dict[str, str]) -> Read:
        """Read image i or, where it is unreadable and that is allowed, another of its class.

        Raises:
            ImageError: it is unreadable, or with "skip" all images of its class are.
        """
        try:
            return self._read(i)
        except CacheError:
            raise
        except ImageError as error:
            if self._reading.on_bad_image == "error":
                raise
            broken[self._index.paths[i]] = str(error)
        label = self._index.labels[i]
        others = np.flatnonzero(self._index.labels == label)
        rng = np.random.default_rng([_REPLACEMENT_STREAM, self._seed, draw])
        for other in rng.permutation(others[others != i]).tolist():
            try:
                return self._read(other)
            except CacheError:
                raise
            except ImageError as error:
                broken[self._index.paths[other]] = str(error)
        raise ImageError(
            f"class {self._index.class_names[int(label)]} has no readable image among its "
            f"{len(others)}: {next(iter(broken.values()))}; take the class out or repair its files"
        )

    def _read(self, i: int) -> Read:
        if self._reading.hand_over == "files":
            path = self._index.paths[i]
            data = self._index.read_bytes(i)
            shape = _device_jpeg_shape(data)
            if shape is not None:
                return np.frombuffer(data, np.uint8), shape, path
            rgb = decode_image(data, path)
        else:
            rgb = self._index.read_image(i)
        return rgb, rgb.shape[:2], None


def check_broken(num_broken: int, num_images: int) -> None:
    """Raise ImageError where more training images are broken than may be skipped."""
    allowed = max(1, int(MAX_BROKEN_SHARE * num_images))
    if num_broken > allowed:
        raise ImageError(
            f"{num_broken} broken images among {num_images}: --on_bad_image=skip tolerates "
            f"{allowed} ({MAX_BROKEN_SHARE:.0%}); repair the data set, python -m reader.check "
            "lists what is wrong"
        )


def _device_jpeg_shape(data: bytes) -> tuple[int, int] | None:
    """Return height and width of a JPEG that can be decoded on a GPU; None of another image."""
    if not is_whole_jpeg(data):
        return None
    try:
        with Image.open(io.BytesIO(data)) as image:
            return (image.height, image.width) if image.mode in DEVICE_MODES else None
    except Exception:  # headers can break in many ways; the decoder then says what is wrong
        return None
