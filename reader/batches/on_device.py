"""Training images that the device crops, or decodes too: --augment_on and --decode_on=device."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from metric_learning.reader.sets.exif import TURNS, oriented_shape
from metric_learning.reader.sets.image_set import (
    AS_REFERENCE,
    Decoding,
    ImageSet,
    check_size,
    decode_image,
    is_whole_jpeg,
)
from metric_learning.reader.sets.jpeg_head import read_jpeg_head
from metric_learning.reader.transforms import Crop, resize_bilinear

# Colours of JPEG files that a GPU decodes as the CPU does; CMYK has 4.
DEVICE_COMPONENTS = (1, 3)
MOST_REDUCTION = 64  # of a side; beyond some 94 CUDA's antialiasing lacks shared memory
UNLIMITED = Decoding(max_pixels=sys.maxsize)  # for files whose size `read_file` has checked


class JpegFile(NamedTuple):
    """An image that is still a JPEG file: its path, its bytes, (n,) uint8, height and width.

    They are those of the upright image; it is stored in the EXIF orientation, 1 to 8.
    """

    path: str
    data: np.ndarray
    shape: tuple[int, int]
    orientation: int


def read_file(
    image_set: ImageSet, i: int, decoding: Decoding = AS_REFERENCE
) -> np.ndarray | JpegFile:
    """Read image i, and decode it where no GPU could; ImageError if that cannot be."""
    path, data = image_set.paths[i], image_set.read_bytes(i, decoding)
    head = read_jpeg_head(data) if is_whole_jpeg(data) else None
    if head is None or head.num_components not in DEVICE_COMPONENTS:
        return decode_image(data, path, decoding)
    check_size(head.height * head.width, path, decoding)
    shape = oriented_shape((head.height, head.width), head.orientation)
    return JpegFile(path, np.frombuffer(data, np.uint8), shape, head.orientation)


@dataclass(frozen=True)
class WholeImages:
    """Images of different sizes with their crops; as a batch, they behave like a tensor."""

    # (n,) uint8, the images one after the other: rows of RGB pixels, or a JPEG file
    data: torch.Tensor
    lengths: list[int]  # bytes of each image
    shapes: list[tuple[int, int]]  # height and width of each image in pixels
    crops: list[Crop]  # what is to be taken of each image
    # path and EXIF orientation of each image that is still a JPEG file; None: its pixels are there
    jpegs: list[tuple[str, int] | None]

    def __getitem__(self, part: slice) -> WholeImages:
        """Return some successive images."""
        first = sum(self.lengths[: part.start])
        return WholeImages(
            self.data[first : first + sum(self.lengths[part])],
            self.lengths[part],
            self.shapes[part],
            self.crops[part],
            self.jpegs[part],
        )

    def share_memory_(self) -> None:
        """Move the images to shared memory."""
        self.data.share_memory_()

    def pin_memory(self) -> WholeImages:
        """Return the images in pinned memory; the loader calls this by its name."""
        return replace(self, data=self.data.pin_memory())

    def crop(self, crop_size: int, device: torch.device) -> torch.Tensor:
        """Crop, resize and mirror the images on the device: (B, 3, S, S) uint8, channels last.

        The arithmetic is that of `standard_train`: on a CPU the result equals it bit for bit, on
        other devices it is within a grey level. ImageError if a file is broken.
        """
        resized = []
        for image, crop in zip(self.unpack(device), self.crops, strict=True):
            box = image[:, crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
            resized.append(_resize(box, crop_size))
        images = torch.stack(resized).contiguous(memory_format=torch.channels_last)

        mirrored = torch.tensor([crop.mirrored for crop in self.crops])
        mirrored = mirrored.to(device, non_blocking=True)
        return torch.where(mirrored[:, None, None, None], images.flip(3), images)

    def unpack(self, device: torch.device) -> list[torch.Tensor]:
        """Return the images as (3, H, W) uint8 tensors on the device; JPEG files decoded there."""
        # In one copy where there is nothing to decode, which starts from bytes on the CPU.
        data = self.data if any(self.jpegs) else self.data.to(device, non_blocking=True)
        parts = data.split(self.lengths)
        files = [(*jpeg, part) for jpeg, part in zip(self.jpegs, parts, strict=True) if jpeg]
        decoded = iter(decode_on_device(files, device) if files else ())
        return [
            next(decoded)
            if jpeg
            else part.to(device, non_blocking=True).view(*shape, 3).permute(2, 0, 1)
            for jpeg, part, shape in zip(self.jpegs, parts, self.shapes, strict=True)
        ]


def _resize(box: torch.Tensor, crop_size: int) -> torch.Tensor:
    """Resize a crop (3, H, W) on its device; a very large one, which no GPU can, on the CPU."""
    if max(box.shape[1:]) <= MOST_REDUCTION * crop_size:
        return resize_bilinear(box, crop_size)
    return resize_bilinear(box.cpu(), crop_size).to(box.device)


def decode_on_device(
    files: Sequence[tuple[str, int, torch.Tensor]], device: torch.device
) -> list[torch.Tensor]:
    """Decode JPEG files to upright (3, H, W) uint8 with nvJPEG; where it fails, with OpenCV.

    `files` are path, for the error message, EXIF orientation, and bytes of each file, (n,) uint8 on
    the CPU; the device is a CUDA device. ImageError if a file is broken.
    """
    from torchvision.io import ImageReadMode, decode_jpeg  # takes long to import

    if device.type == "cuda":
        # The decoder writes on a stream of its own, which does not wait for this one, into memory
        # that this one was the last to use: kernels still in its queue would find it overwritten.
        torch.cuda.current_stream(device).synchronize()
    try:
        data = [data for _, _, data in files]
        images = decode_jpeg(data, mode=ImageReadMode.RGB, device=device)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # one bad file, or one of a kind that nvJPEG lacks, fails the whole batch
        return [
            torch.from_numpy(decode_image(data.numpy().tobytes(), path, UNLIMITED))
            .to(device)
            .permute(2, 0, 1)
            for path, _, data in files
        ]
    return [
        turn_upright(image, orientation)
        for image, (_, orientation, _) in zip(images, files, strict=True)
    ]


def turn_upright(image: torch.Tensor, orientation: int) -> torch.Tensor:
    """Turn an image (3, H, W) as it is stored upright, as `orient` does on the CPU."""
    is_transposed, turns_rows, turns_columns = TURNS[orientation]
    image = image.transpose(1, 2) if is_transposed else image
    turned = [1] * turns_rows + [2] * turns_columns
    return image.flip(turned) if turned else image


def pack(samples: Sequence[tuple[np.ndarray | JpegFile, Crop]]) -> WholeImages:
    """Put images of different sizes and their crops into one batch."""
    flat = [
        image.data if isinstance(image, JpegFile) else image.reshape(-1) for image, _ in samples
    ]
    return WholeImages(
        torch.from_numpy(np.concatenate(flat)),
        [len(data) for data in flat],
        [(image.shape[0], image.shape[1]) for image, _ in samples],
        [crop for _, crop in samples],
        [
            (image.path, image.orientation) if isinstance(image, JpegFile) else None
            for image, _ in samples
        ],
    )
