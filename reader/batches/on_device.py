"""Training images that the device crops, or decodes too: --augment_on and --decode_on=device."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from metric_learning.reader.sets.image_set import ImageSet, decode_image, is_whole_jpeg
from metric_learning.reader.transforms import Crop, resize_bilinear

# Modes of JPEG files, as Pillow names them, that a GPU decodes as the CPU does; CMYK is not one.
DEVICE_MODES = ("RGB", "L")


class JpegFile(NamedTuple):
    """An image that is still a JPEG file: its path, its bytes, (n,) uint8, height and width."""

    path: str
    data: np.ndarray
    shape: tuple[int, int]


def read_file(image_set: ImageSet, i: int) -> np.ndarray | JpegFile:
    """Read image i, and decode it where no GPU could; ImageError if that cannot be."""
    path, data = image_set.paths[i], image_set.read_bytes(i)
    shape = _device_jpeg_shape(data)
    if shape is None:
        return decode_image(data, path)
    return JpegFile(path, np.frombuffer(data, np.uint8), shape)


def _device_jpeg_shape(data: bytes) -> tuple[int, int] | None:
    """Return height and width of a JPEG that can be decoded on a GPU; None of another image."""
    if not is_whole_jpeg(data):
        return None
    try:
        with Image.open(io.BytesIO(data)) as image:
            return (image.height, image.width) if image.mode in DEVICE_MODES else None
    except Exception:  # headers can break in many ways; the decoder then says what is wrong
        return None


@dataclass(frozen=True)
class WholeImages:
    """Images of different sizes with their crops; as a batch, they behave like a tensor."""

    # (n,) uint8, the images one after the other: rows of RGB pixels, or a JPEG file
    data: torch.Tensor
    lengths: list[int]  # bytes of each image
    shapes: list[tuple[int, int]]  # height and width of each image in pixels
    crops: list[Crop]  # what is to be taken of each image
    # the path of each image that is still a JPEG file; None: its pixels are there
    jpegs: list[str | None]

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
            resized.append(resize_bilinear(box, crop_size))
        images = torch.stack(resized).contiguous(memory_format=torch.channels_last)

        mirrored = torch.tensor([crop.mirrored for crop in self.crops])
        mirrored = mirrored.to(device, non_blocking=True)
        return torch.where(mirrored[:, None, None, None], images.flip(3), images)

    def unpack(self, device: torch.device) -> list[torch.Tensor]:
        """Return the images as (3, H, W) uint8 tensors on the device; JPEG files decoded there."""
        # In one copy where there is nothing to decode, which starts from bytes on the CPU.
        data = self.data if any(self.jpegs) else self.data.to(device, non_blocking=True)
        parts = data.split(self.lengths)
        files = [(path, part) for path, part in zip(self.jpegs, parts, strict=True) if path]
        decoded = iter(decode_on_device(files, device) if files else ())
        return [
            next(decoded)
            if path
            else part.to(device, non_blocking=True).view(*shape, 3).permute(2, 0, 1)
            for path, part, shape in zip(self.jpegs, parts, self.shapes, strict=True)
        ]


def decode_on_device(
    files: Sequence[tuple[str, torch.Tensor]], device: torch.device
) -> list[torch.Tensor]:
    """Decode JPEG files to (3, H, W) uint8 with nvJPEG; where it fails, with OpenCV.

    `files` are path, for the error message, and bytes of each file, (n,) uint8 on the CPU; the
    device is a CUDA device. ImageError if a file is broken.
    """
    from torchvision.io import ImageReadMode, decode_jpeg  # takes long to import

    try:
        return decode_jpeg([data for _, data in files], mode=ImageReadMode.RGB, device=device)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # one bad file, or one of a kind that nvJPEG lacks, fails the whole batch
        return [
            torch.from_numpy(decode_image(data.numpy().tobytes(), path)).to(device).permute(2, 0, 1)
            for path, data in files
        ]


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
        [image.path if isinstance(image, JpegFile) else None for image, _ in samples],
    )
