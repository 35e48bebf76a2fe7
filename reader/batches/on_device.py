"""Training images that the device crops, or decodes too: --augment_on and --decode_on=device."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from metric_learning.reader.batches.resize import (
    LENGTH,
    cut_strips_on_device,
    num_values,
    plan_of,
    resize,
)
from metric_learning.reader.sets.exif import TURNS, oriented_shape
from metric_learning.reader.sets.image_set import (
    AS_REFERENCE,
    Decoding,
    ImageSet,
    check_size,
    decode_image,
    is_whole_jpeg,
)
from metric_learning.reader.sets.jpeg_head import has_scan, read_jpeg_head
from metric_learning.reader.transforms import Crop

# Colours of JPEG files that a GPU decodes as the CPU does; CMYK has 4.
DEVICE_COMPONENTS = (1, 3)
MOST_VALUES = 3 * 2**24  # resized at once: half a gigabyte in float32, one in float64
KINDS = (torch.int32, torch.float32, torch.int32)  # of the rows, weights and starts of sums
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
    if image_set.boxes is not None:
        return image_set.read_image(i, decoding)
    path, data = image_set.paths[i], image_set.read_bytes(i, decoding)
    head = read_jpeg_head(data) if is_whole_jpeg(data) else None
    if head is None or head.num_components not in DEVICE_COMPONENTS or not has_scan(data):
        return decode_image(data, path, decoding)
    check_size(head.height * head.width, path, decoding)
    shape = oriented_shape((head.height, head.width), head.orientation)
    return JpegFile(path, np.frombuffer(data, np.uint8), shape, head.orientation)


class DeviceFile(NamedTuple):
    """A JPEG file that is decoded on the device: its bytes in the batch, and what is cropped."""

    path: str
    orientation: int
    length: int
    crop: Crop


class Group(NamedTuple):
    """Images of a batch that are resized together; the strips of files follow the others."""

    # bytes of what lies in the data: the strips, then rows, weights and starts of both passes
    lengths: list[int]
    files: list[DeviceFile]
    dtype: torch.dtype  # of the sums


@dataclass(frozen=True)
class DeviceImages:
    """Images that the device crops and resizes: pixels cut out by the workers, or JPEG files.

    All lies in `data`, (n,) uint8, so that a batch takes one block of shared memory and one copy.
    """

    data: torch.Tensor  # what the groups say, one after the other, and behind it the files
    groups: list[Group]
    crop_size: int

    def share_memory_(self) -> None:
        """Move the images to shared memory."""
        self.data.share_memory_()

    def pin_memory(self) -> DeviceImages:
        """Return the images in pinned memory; the loader calls this by its name."""
        return replace(self, data=self.data.pin_memory())

    def crop(self, device: torch.device) -> torch.Tensor:
        """Crop, resize and mirror the images on the device: (B, 3, S, S) uint8, channels last.

        The result is that of `standard_train` to the bit, where a CPU resizes bytes as such (x86
        with AVX2, ARM); elsewhere it is within a grey level. ImageError if a file is broken.
        """
        lengths = [length for group in self.groups for length in group.lengths]
        files = [file.length for group in self.groups for file in group.files]
        on_device, on_host = self.data.split([sum(lengths), sum(files)])
        parts = iter(on_device.to(device, non_blocking=True).split(lengths))
        datas = iter(on_host.split(files))

        crops = []
        for group in self.groups:
            strips, *numbers = (next(parts) for _ in group.lengths)
            sums = [part.view(kind) for part, kind in zip(numbers, 2 * KINDS, strict=True)]
            table = self._table(group, strips, [next(datas) for _ in group.files], device)
            crops.append(resize(table, sums[:3], sums[3:], self.crop_size, group.dtype))
        images = torch.cat(crops) if len(crops) > 1 else crops[0]
        return images.permute(0, 3, 1, 2)

    def _table(
        self, group: Group, strips: torch.Tensor, datas: list[torch.Tensor], device: torch.device
    ) -> torch.Tensor:
        """Return the strips of a group, (n, LENGTH) uint8, those of decoded files at the end."""
        table = strips.view(-1, LENGTH)
        if not group.files:
            return table
        files = [
            (file.path, file.orientation, data)
            for file, data in zip(group.files, datas, strict=True)
        ]
        decoded = zip(decode_on_device(files, device), group.files, strict=True)
        return torch.cat([table, *(cut_strips_on_device(image, f.crop) for image, f in decoded)])


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


Sample = tuple[np.ndarray | JpegFile, Crop]  # the strips of a crop, or the file that it is of


def pack(samples: Sequence[Sample], crop_size: int) -> DeviceImages:
    """Put crops of different sizes, to be resized to S, into one batch."""
    groups: list[Group] = []
    arrays: list[np.ndarray] = []
    for members in grouped(samples, crop_size):
        is_file = [isinstance(image, JpegFile) for image, _ in members]
        order = np.argsort(is_file, kind="stable")
        plan = plan_of([crop for _, crop in members], order.tolist(), crop_size)

        strips = [image for image, _ in members if not isinstance(image, JpegFile)]
        numbers: list[np.ndarray] = []
        for sums in (plan.columns, plan.rows):
            starts = np.cumsum(sums.counts, dtype=np.int32) - sums.counts
            numbers += [sums.rows, sums.weights, starts]
        files = [
            DeviceFile(image.path, image.orientation, len(image.data), crop)
            for image, crop in members
            if isinstance(image, JpegFile)
        ]
        lengths = [sum(part.nbytes for part in strips), *(part.nbytes for part in numbers)]
        groups.append(Group(lengths, files, plan.dtype))
        arrays += [*strips, *numbers]

    arrays += [image.data for image, _ in samples if isinstance(image, JpegFile)]
    data = np.concatenate([array.reshape(-1).view(np.uint8) for array in arrays])
    return DeviceImages(torch.from_numpy(data), groups, crop_size)


def grouped(samples: Sequence[Sample], crop_size: int) -> Iterator[list[Sample]]:
    """Yield successive samples of at most MOST_VALUES at once, in their order; or a single one."""
    members: list[Sample] = []
    total = 0
    for sample in samples:
        size = num_values(sample[1], crop_size)
        if members and total + size > MOST_VALUES:
            yield members
            members, total = [], 0
        members.append(sample)
        total += size
    yield members
