"""What happens to a training batch on the device: decode, crop, resize, mirror, normalise."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torchvision.io import ImageReadMode, decode_jpeg

from metric_learning.reader.batches.batch import Batch, WholeImages
from metric_learning.reader.preprocessing import Preprocessing
from metric_learning.reader.sets.image_set import decode_image
from metric_learning.reader.transforms import resize_bilinear, scale_and_shift


def to_inputs(batch: Batch, preprocessing: Preprocessing, device: torch.device) -> torch.Tensor:
    """Return the network inputs of a training batch on the device.

    Args:
        batch: what the training loader yields.
        preprocessing: how images become network inputs.
        device: where they are to be.

    Shape:
        returns: (B, 3, S, S) float32 in channels-last order, in which convolutions are fastest.

    Raises:
        ImageError: an image that is decoded here is broken.
    """
    images = batch.images
    if isinstance(images, WholeImages):
        images = crop_whole(images, preprocessing.crop_size, device)
    else:
        images = images.to(device, non_blocking=True)
    return normalise(images, preprocessing.mean, preprocessing.std)


def crop_whole(whole: WholeImages, crop_size: int, device: torch.device) -> torch.Tensor:
    """Crop, resize and mirror whole images on the device: (B, 3, S, S) uint8, channels last.

    The arithmetic is that of `standard_train`: on a CPU the result equals it bit for bit, on other
    devices it is within a grey level.
    """
    resized = []
    for image, crop in zip(unpack(whole, device), whole.crops, strict=True):
        box = image[:, crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
        resized.append(resize_bilinear(box, crop_size))
    images = torch.stack(resized).contiguous(memory_format=torch.channels_last)
    mirrored = torch.tensor([crop.mirrored for crop in whole.crops]).to(device, non_blocking=True)
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)


def unpack(whole: WholeImages, device: torch.device) -> list[torch.Tensor]:
    """Return the images as (3, H, W) uint8 tensors on the device; JPEG files are decoded there."""
    if not any(whole.jpegs):
        parts = whole.data.to(device, non_blocking=True).split(whole.lengths)
        return [
            part.view(*shape, 3).permute(2, 0, 1)
            for part, shape in zip(parts, whole.shapes, strict=True)
        ]
    parts = whole.data.split(whole.lengths)
    decoded = iter(
        decode_on_device(
            [part for part, path in zip(parts, whole.jpegs, strict=True) if path],
            [path for path in whole.jpegs if path],
            device,
        )
    )
    return [
        next(decoded)
        if path
        else part.to(device, non_blocking=True).view(*shape, 3).permute(2, 0, 1)
        for part, shape, path in zip(parts, whole.shapes, whole.jpegs, strict=True)
    ]


def decode_on_device(
    files: list[torch.Tensor], paths: Sequence[str], device: torch.device
) -> list[torch.Tensor]:
    """Decode JPEG files to (3, H, W) uint8 with nvJPEG; where it fails, with OpenCV.

    Args:
        files: bytes of each file, (n,) uint8 on the CPU.
        paths: of the files, for the error message.
        device: a CUDA device.

    Raises:
        ImageError: a file is broken.
    """
    try:
        return decode_jpeg(files, mode=ImageReadMode.RGB, device=device)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # one bad file, or one of a kind that nvJPEG lacks, fails the whole batch
        return [
            torch.from_numpy(decode_image(file.numpy().tobytes(), path)).to(device).permute(2, 0, 1)
            for file, path in zip(files, paths, strict=True)
        ]


def normalise(
    images: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]
) -> torch.Tensor:
    """Map (B, 3, S, S) uint8 to (value / 255 - mean) / std, float32, both channels last.

    The product and the difference are rounded one after the other, as for test images: on all
    devices the result equals that of `reader.transforms` bit for bit.
    """
    batch_size, channels, height, width = images.shape
    # Whole rows of pixels: an innermost dimension of three channels would be eight times slower.
    rows = images.permute(0, 2, 3, 1).reshape(batch_size * height, width * channels)
    scales, shifts = _row_constants(mean, std, width, images.device)
    inputs = torch.empty(rows.shape, device=images.device)
    # A CPU keeps one image in its cache between the steps: half the time of the whole batch.
    num_rows = height if images.device.type == "cpu" else len(rows)
    for part, values in zip(inputs.split(num_rows), rows.split(num_rows), strict=True):
        part.copy_(values).mul_(scales).sub_(shifts)
    return inputs.view(batch_size, height, width, channels).permute(0, 3, 1, 2)


@lru_cache(maxsize=8)
def _row_constants(
    mean: tuple[float, ...], std: tuple[float, ...], width: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and shift of every value of a row of RGB pixels, each (3 x width,) float32."""
    scale, shift = (torch.from_numpy(values) for values in scale_and_shift(mean, std))
    return scale.repeat(width).to(device), shift.repeat(width).to(device)
