"""The images of one split of a data set: their paths and labels, and how to read one.

An image file becomes pixels in one way, whoever reads it: `decode_image` does it.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from metric_learning.common.archives import Member, find_member
from metric_learning.reader.sets.boxes import WHOLE, crop_box, name_part
from metric_learning.reader.sets.exif import TURNS, exif_orientation, orient, oriented_shape
from metric_learning.reader.sets.formats import pillow_formats, why_unknown
from metric_learning.reader.sets.jpeg_head import JPEG_END, JPEG_START, read_jpeg_head
from metric_learning.reader.sets.left_out import LeftOut

# The way in which files become pixels. What is kept of pixels (caches, features) names it: another
# number, other pixels of some files. 1 knew neither orientation nor what is transparent.
DECODER = 2
# Most pixels of an image, in millions: above the 102 of the largest usual cameras. Decoding takes 6
# bytes for each, 14 where there is transparency: 0.8 or 1.8 GB in each process that reads.
MAX_PIXELS = 128
BYTES_PER_PIXEL = 8  # of a file: as many as four channels of 16 bits take uncompressed
READING = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
HEAD_BYTES = 1 << 16  # most heads of JPEG files are shorter

PNG_START = b"\x89PNG\r\n\x1a\n"
# Text and colour profiles, which are not used. Pillow unpacks them, and refuses the long ones.
PNG_UNUSED = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
ORIENTATION_TAG = 0x0112  # of TIFF files


class ImageError(ValueError):
    """An image is missing, truncated or no image; the message names its path."""


class WorkerError(OSError):
    """A process that reads images was killed, or has no memory to hand its images over."""


class Decoding(NamedTuple):
    """How image files become pixels, as far as that can be chosen."""

    # What becomes of transparent pixels: "drop", they have the colour that is stored, as in the
    # reference; or "white", the image is composed on white
    alpha: str = "drop"
    max_pixels: int = MAX_PIXELS  # most pixels, in millions; an image of more is refused


AS_REFERENCE = Decoding()


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images of one split of a data set, in data-set order."""

    name: str  # data set name, e.g. "sop"
    split: str  # "train", "val", "test" or "all"
    # N file paths, or names such as "data_batch_1:0042" of images held in memory
    paths: Sequence[str]
    # (N,) int64; 0..C-1 in the train split, the data set's own numbers in all others
    labels: np.ndarray
    class_names: dict[int, str]  # label -> name, in label order
    is_query: np.ndarray  # (N,) bool, images that search in the evaluation
    is_gallery: np.ndarray  # (N,) bool, images that are searched
    # N times (H, W, 3) uint8 RGB for images held in memory, else None
    images: Sequence[np.ndarray] | np.ndarray | None = None
    # (N, 4) int32, the parts of the photos that are the images, see `crop_box`; None: whole photos
    boxes: np.ndarray | None = None
    # (N,) int64, such as cameras, -1: none; images of a query's class and group are left out of its
    # ranking, see `retrieval.groups`; None: there are none
    groups: np.ndarray | None = None
    super_classes: dict[int, str] | None = None  # label -> name of its super class, else None
    left_out: LeftOut = LeftOut()  # what of the data set nobody reads
    notes: tuple[str, ...] = ()  # lines for the log: classes chosen, texts read as the same
    missing: tuple[str, ...] = ()  # a line for each listed image that is not there
    repeated: tuple[str, ...] = ()  # a line for each image that was listed before

    def __post_init__(self) -> None:
        assert self.labels.dtype == np.int64
        assert len(self.labels) == len(self.paths) == len(self.is_query) == len(self.is_gallery)
        assert self.boxes is None or self.boxes.shape == (len(self.paths), 4)

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

    def select(self, rows: np.ndarray) -> ImageSet:
        """Return the set of some images, `rows` (M,) int64."""
        images = self.images
        return replace(
            self,
            paths=[self.paths[row] for row in rows],
            labels=self.labels[rows],
            is_query=self.is_query[rows],
            is_gallery=self.is_gallery[rows],
            images=None if images is None else [images[row] for row in rows],
            boxes=None if self.boxes is None else self.boxes[rows],
            groups=None if self.groups is None else self.groups[rows],
        )

    def name_of(self, i: int) -> str:
        """Return the path of image i, with its box where it is a part of a photo."""
        return name_part(self.paths[i], None if self.boxes is None else self.boxes[i])

    def read_image(self, i: int, decoding: Decoding = AS_REFERENCE) -> np.ndarray:
        """Decode image i to (H, W, 3) uint8 RGB; ImageError if its file is missing or broken."""
        if self.images is not None:
            return self.images[i]
        image = decode_image(self.read_bytes(i, decoding), self.paths[i], decoding)
        return image if self.boxes is None else _crop(image, self.boxes[i], self.paths[i])

    def read_shape(self, i: int, decoding: Decoding = AS_REFERENCE) -> tuple[int, int]:
        """Return height and width of image i, from the head of its file if it can; or ImageError.

        They are those of `read_image`, which turns images upright.
        """
        path = self.paths[i]
        if self.boxes is not None and tuple(self.boxes[i]) != WHOLE:
            height, width, _ = self.read_image(i, decoding).shape
            return height, width
        data = read_file(path, decoding.max_pixels, HEAD_BYTES)
        head = read_jpeg_head(data) if data.startswith(JPEG_START) else None
        if head is not None:
            check_size(head.height * head.width, path, decoding)
            return oriented_shape((head.height, head.width), head.orientation)

        shape = read_upright_shape(self.read_bytes(i, decoding))
        if shape is None:
            height, width, _ = self.read_image(i, decoding).shape
            return height, width
        check_size(shape[0] * shape[1], path, decoding)
        return shape

    def read_bytes(self, i: int, decoding: Decoding = AS_REFERENCE) -> bytes:
        """Read the file of image i; ImageError if it cannot be, WorkerError if nothing can be."""
        return read_file(self.paths[i], decoding.max_pixels)


def read_file(path: str, max_pixels: int = MAX_PIXELS, num_bytes: int = 0) -> bytes:
    """Read an image file, or its first `num_bytes`, if not 0; it may lie in a tar archive.

    Raises:
        ImageError: it cannot be read, is no regular file (a pipe, a device), or is longer than any
            image of so many million pixels.
        WorkerError: no file can be opened any more.
    """
    try:
        file, member = _open_file(path)
        try:
            state = os.fstat(file)
            if stat.S_ISDIR(state.st_mode):
                raise IsADirectoryError(os.strerror(errno.EISDIR))
            if not stat.S_ISREG(state.st_mode):
                raise OSError("expected a file, found a pipe, a device or the like")
            size = state.st_size if member is None else member.size
            if size > max_pixels * 10**6 * BYTES_PER_PIXEL:
                raise OSError(f"{size:,} bytes are too many, --max_pixels allows more")

            if member is not None:
                os.lseek(file, member.start, os.SEEK_SET)
            return _read_bytes(file, min(size, num_bytes or size))
        finally:
            os.close(file)
    except (OSError, MemoryError, ValueError) as error:  # the last: a zero byte in the path
        number = getattr(error, "errno", None)
        if number in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise WorkerError(  # not the image's fault
                f"cannot read images ({os.strerror(number)}): lower --num_workers, or allow "
                "more open files (ulimit -n)"
            ) from error
        reason = getattr(error, "strerror", None) or str(error) or "out of memory"
        raise ImageError(f"cannot read image {path}: {reason}") from error


def _open_file(path: str) -> tuple[int, Member | None]:
    """Open a file, or the archive that it lies in, and say where."""
    # A pipe that nobody writes to would keep others waiting for ever. Calls of the system alone
    # take half the time of `open`.
    try:
        return os.open(path, READING), None
    except NotADirectoryError:
        member = find_member(path)
        if member is None:
            raise
        return os.open(member.archive, READING), member


def _read_bytes(file: int, num_bytes: int) -> bytes:
    """Read so many bytes of an open file, or what there is."""
    data = os.read(file, num_bytes)
    while len(data) < num_bytes and (more := os.read(file, num_bytes - len(data))):
        data += more  # beyond 2 GB, or after a signal
    return data


def check_size(num_pixels: int, path: str, decoding: Decoding) -> None:
    """Raise ImageError for an image of more pixels than are allowed."""
    if num_pixels > decoding.max_pixels * 10**6:
        raise ImageError(
            f"cannot read image {path}: {num_pixels:,} pixels are more than the "
            f"{decoding.max_pixels} million allowed: give --max_pixels="
            f"{-(-num_pixels // 10**6)} if it is to be read"
        )


def decode_file(
    path: str, decoding: Decoding = AS_REFERENCE, box: Sequence[int] | None = None
) -> np.ndarray:
    """Read an image file, or a box of it, as `decode_image` does its bytes.

    Errors are those of `read_file` too; ImageError where nothing of the box is in the image.
    """
    image = decode_image(read_file(path, decoding.max_pixels), path, decoding)
    return image if box is None else _crop(image, box, path)


def _crop(image: np.ndarray, box: Sequence[int], path: str) -> np.ndarray:
    try:
        return crop_box(image, box)
    except ValueError as error:
        raise ImageError(f"cannot read image {path}: {error}") from error


def decode_image(data: bytes, path: str, decoding: Decoding = AS_REFERENCE) -> np.ndarray:
    """Decode the bytes of an image file to (H, W, 3) uint8 RGB; `path` is for the error message.

    The EXIF orientation is applied, as OpenCV's `imread` does in the reference; 16-bit greyscale
    is scaled to 8 bit; of an animation the first frame is taken.

    Raises:
        ImageError: the bytes are truncated, not an image of a format of `FORMATS`, or of more
            pixels than `decoding` allows, which the head tells.
    """
    head = read_jpeg_head(data) if is_whole_jpeg(data) else None
    if head is not None:
        check_size(head.height * head.width, path, decoding)
        rgb = decode_jpeg(data)
        if rgb is not None:
            return rgb if head.orientation == 1 else orient(rgb, head.orientation)

    try:
        with strict_pillow(), open_image(data) as image:
            check_size(image.width * image.height, path, decoding)
            return upright_rgb(image, decoding.alpha)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"cannot read image {path}: {why_unknown(data)}") from error
    except Exception as error:  # decoders raise many types on broken bytes
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"cannot read image {path}: {reason}") from error


def is_whole_jpeg(data: bytes) -> bool:
    """Whether these are the bytes of a JPEG that is not cut short."""
    return data.startswith(JPEG_START) and data.endswith(JPEG_END)


def decode_jpeg(data: bytes) -> np.ndarray | None:
    """Decode a JPEG with OpenCV: Pillow's pixels in half the time; None when it cannot.

    The image is as it is stored, whatever its orientation. OpenCV fills what a truncated file lacks
    with grey, so only whole files may come here.
    """
    try:
        bgr = cv2.imdecode(
            np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        )
    except cv2.error:
        return None
    return None if bgr is None else cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def open_image(data: bytes) -> ImageFile.ImageFile:
    """Open an image with Pillow, which reads its head."""
    if data.startswith(PNG_START):
        data = _without_unused(data)
    return Image.open(io.BytesIO(data), formats=pillow_formats())


def _without_unused(data: bytes) -> bytes:
    """Return the bytes of a PNG without its text and colour profile."""
    kept, start, place = [], 0, len(PNG_START)
    while place + 8 <= len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        if data[place + 4 : place + 8] in PNG_UNUSED and end <= len(data):
            kept.append(data[start:place])
            start = end
        place = end
    return b"".join([*kept, data[start:]]) if kept else data


class _PillowSwitches:
    """Pillow's global switches, which threads that decode at the same time share."""

    def __init__(self) -> None:
        self._lock, self._users = threading.Lock(), 0

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Make truncated files an error, and leave the limit of pixels to `check_size`."""
        with self._lock:
            if self._users == 0:
                self._found = ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS
                ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = False, None
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0:
                    ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = self._found


strict_pillow = _PillowSwitches()


def read_upright_shape(data: bytes) -> tuple[int, int] | None:
    """Return height and width of an image from its head; None where they take decoding it."""
    try:
        with strict_pillow(), open_image(data) as image:
            # A PNG may tell its orientation behind the pixels; of TIFF it is up to the version of
            # Pillow whether the size is already that of the upright image.
            if image.format == "TIFF" or (image.format == "PNG" and b"eXIf" in data):
                return None
            return oriented_shape((image.height, image.width), orientation_of(image))
    except Exception:  # heads can break in many ways; the decoder says what is wrong
        return None


def orientation_of(image: Image.Image) -> int:
    """Return the orientation, 1 to 8, in which the pixels of an image are, once loaded.

    That of XMP alone does not count, since OpenCV does not know it.
    """
    tags = getattr(image, "tag_v2", None)  # of TIFF; Pillow 11 turns it itself and drops the tag
    if tags is None:
        exif = image.info.get("exif")
        return exif_orientation(exif) if exif else 1
    return tags.get(ORIENTATION_TAG) if tags.get(ORIENTATION_TAG) in TURNS else 1


def upright_rgb(image: Image.Image, alpha: str) -> np.ndarray:
    """Convert an image of any mode to (H, W, 3) uint8, turned upright; `alpha` as in Decoding."""
    image.load()
    rgb, orientation = to_rgb(image, alpha), orientation_of(image)
    return rgb if orientation == 1 else orient(rgb, orientation)


def to_rgb(image: Image.Image, alpha: str) -> np.ndarray:
    """Convert an image of any mode, as it is stored, to (H, W, 3) uint8."""
    if image.mode == "F":
        raise ValueError("floating-point pixels; expected an 8-bit or 16-bit image")
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError("32-bit pixels; expected an 8-bit or 16-bit image")
        shades = ((grey * 255 + 32767) // 65535).astype(np.uint8)
        if alpha == "white":
            shades[grey == image.info.get("transparency", -1)] = 255
        return np.repeat(shades[:, :, None], 3, axis=2)

    if alpha == "white" and image.has_transparency_data:
        image = image.convert("RGBA")
        canvas = Image.new("RGB", image.size, "white")
        canvas.paste(image, mask=image)
        image = canvas
    return np.asarray(image.convert("RGB"))
