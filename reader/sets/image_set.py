"""The images of one split of a data set: their paths and labels, and how to read one."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from metric_learning.reader.sets.left_out import LeftOut

JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"


class ImageError(ValueError):
    """An image is missing, truncated or no image; the message names its path."""


class WorkerError(OSError):
    """A process that reads images was killed, or has no memory to hand its images over."""


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images of one split of a data set, in data-set order."""

    name: str  # data set name, e.g. "sop"
    split: str  # "train", "val", "test" or "all"
    paths: list[str]  # N file paths, or names such as "data_batch_1:0042" of images held in memory
    # (N,) int64; 0..C-1 in the train split, the data set's own numbers in all others
    labels: np.ndarray
    class_names: dict[int, str]  # label -> name, in label order
    is_query: np.ndarray  # (N,) bool, images that search in the evaluation
    is_gallery: np.ndarray  # (N,) bool, images that are searched
    # N times (H, W, 3) uint8 RGB for images held in memory, else None
    images: Sequence[np.ndarray] | np.ndarray | None = None
    super_classes: dict[int, str] | None = None  # label -> name of its super class, else None
    left_out: LeftOut = LeftOut()  # what of the data set nobody reads
    notes: tuple[str, ...] = ()  # lines for the log: classes chosen, texts read as the same
    missing: tuple[str, ...] = ()  # a line for each listed image that is not there
    repeated: tuple[str, ...] = ()  # a line for each image that was listed before

    def __post_init__(self) -> None:
        assert self.labels.dtype == np.int64
        assert len(self.labels) == len(self.paths) == len(self.is_query) == len(self.is_gallery)

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def num_classes(self) -> int:
        """Number of distinct labels."""
        return len(self.class_names)

    @property
    def is_self_retrieval(self) -> bool:
        """Whether every image is both query and gallery."""
        return bool(self.is_query.all() and self.is_gallery.all())

    def require_whole(self, may_miss: bool = False, may_repeat: bool = False) -> ImageSet:
        """Return the set if each image is there and listed once, as trainings and scores need it.

        With `may_miss` some may not be there, as --on_bad_image=skip allows; with `may_repeat` some
        may be listed again, as features of them may. Raises ImageError.
        """
        for is_allowed, faults, what in (
            (may_repeat, self.repeated, "are listed again"),
            (may_miss, self.missing, "are not there"),
        ):
            if faults and not is_allowed:
                count = f"{len(faults):,} of {len(self):,} images of the {self.split} split {what}"
                raise ImageError(f"{faults[0]} ({count})")
        return self

    def read_image(self, i: int) -> np.ndarray:
        """Decode image i to (H, W, 3) uint8 RGB; ImageError if its file is missing or broken."""
        if self.images is not None:
            return self.images[i]
        return decode_image(self.read_bytes(i), self.paths[i])

    def read_shape(self, i: int) -> tuple[int, int]:
        """Return height and width of image i, from the head of its file alone; or ImageError."""
        try:
            with Image.open(self.paths[i]) as image:
                return image.height, image.width
        except Exception:  # heads can break in many ways; the decoder says what is wrong
            height, width, _ = self.read_image(i).shape
            return height, width

    def read_bytes(self, i: int) -> bytes:
        """Read the file of image i; ImageError if it cannot be read."""
        path = self.paths[i]
        try:
            with open(path, "rb") as file:
                return file.read()
        except OSError as error:
            raise ImageError(f"cannot read image {path}: {error.strerror or error}") from error


def decode_image(data: bytes, path: str) -> np.ndarray:
    """Decode the bytes of an image file to (H, W, 3) uint8 RGB; `path` is for the error message.

    Alpha is dropped, 16-bit greyscale is scaled to 8 bit, the EXIF orientation is not applied (as
    in the reference), of an animation the first frame is taken.

    Raises:
        ImageError: the bytes are truncated or not an image.
    """
    if is_whole_jpeg(data):
        rgb = decode_jpeg(data)
        if rgb is not None:
            return rgb
    try:
        with Image.open(io.BytesIO(data)) as image:
            load_whole(image)
            return to_rgb(image)
    except UnidentifiedImageError as error:
        reason = "not an image file" if data else "the file is empty"
        raise ImageError(f"cannot read image {path}: {reason}") from error
    except Exception as error:  # decoders raise many types on broken bytes
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"cannot read image {path}: {reason}") from error


def is_whole_jpeg(data: bytes) -> bool:
    """Whether these are the bytes of a JPEG that is not cut short."""
    return data.startswith(JPEG_START) and data.endswith(JPEG_END)


def decode_jpeg(data: bytes) -> np.ndarray | None:
    """Decode a JPEG with OpenCV: Pillow's pixels in half the time; None when it cannot.

    OpenCV fills what a truncated file lacks with grey, so only whole files may come here.
    """
    try:
        bgr = cv2.imdecode(
            np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        )
    except cv2.error:
        return None
    return None if bgr is None else cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def load_whole(image: Image.Image) -> None:
    """Decode the pixels; a truncated file is an error whatever Pillow's global switch says."""
    lenient = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        image.load()
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = lenient


def to_rgb(image: Image.Image) -> np.ndarray:
    """Convert a decoded image of any mode to (H, W, 3) uint8."""
    if image.mode == "F":
        raise ValueError("floating-point pixels; expected an 8-bit or 16-bit image")
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError("32-bit pixels; expected an 8-bit or 16-bit image")
        grey = ((grey * 255 + 32767) // 65535).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    return np.asarray(image.convert("RGB"))
