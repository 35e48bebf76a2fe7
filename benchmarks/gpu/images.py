"""Draws the images that other sections read; decodes and resizes images on the device."""

from __future__ import annotations

import io
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional

from benchmarks.gpu.section import Section, described
from benchmarks.speed.reader import image_set_of, write_images
from metric_learning.data.make_demo import make_demo
from metric_learning.reader import ImageError
from metric_learning.reader.batches.on_device import JpegFile, decode_on_device, pack, read_file
from metric_learning.reader.batches.resize import cut_strips
from metric_learning.reader.sets.image_set import decode_image
from metric_learning.reader.sets.jpeg_head import read_jpeg_head
from metric_learning.reader.transforms import Crop, random_crop, standard_train

ROTATED = Image.Exif()
ROTATED[0x0112] = 6  # orientation
# The kinds of JPEG files that data sets hold: mode of the image, options of Pillow.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "baseline_420": ("RGB", {}),
    "baseline_444": ("RGB", {"subsampling": 0}),
    "baseline_422": ("RGB", {"subsampling": 1}),
    "progressive": ("RGB", {"progressive": True}),
    "optimized_huffman": ("RGB", {"optimize": True}),
    "restart_markers": ("RGB", {"restart_marker_rows": 1}),
    "grayscale": ("L", {}),
    "grayscale_progressive": ("L", {"progressive": True}),
    "cmyk": ("CMYK", {}),
    "exif_rotated": ("RGB", {"exif": ROTATED}),
}


def data(section: Section) -> None:
    """Draw photographs in classes, the demo data set, and JPEG files of all kinds."""
    num_classes, each, size = section.size((64, 16, (400, 500)), (12, 4, (40, 50)))
    root, demo_size = section.images, section.size((100, 8), (12, 4))
    lines = []
    with ProcessPoolExecutor(section.workers) as pool:
        jobs: list[Any] = [pool.submit(make_demo, section.work / "demo", *demo_size)]
        for number in range(num_classes):
            folder = root / "train" / f"class_{number:03d}"
            folder.mkdir(parents=True)
            jobs.append(pool.submit(write_images, folder, each, size, number))
            lines += [f"{folder / f'{image:05d}.jpg'} {number}\n" for image in range(each)]
        for job in jobs:
            job.result()

    (root / "train.txt").write_text("".join(lines))
    draw_kinds(root / "kinds", root / "train" / "class_000" / "00000.jpg")


def draw_kinds(folder: Path, photograph: Path) -> None:
    """Write a photograph as a JPEG file of every kind, broken ones among them."""
    folder.mkdir()
    whole = photograph.read_bytes()
    image = Image.open(io.BytesIO(whole), formats=("JPEG",))
    for name, (mode, options) in KINDS.items():
        image.convert(mode).save(folder / f"{name}.jpg", quality=90, **options)
    image.crop((0, 0, 17, 13)).save(folder / "tiny_17x13.jpg", quality=90)
    (folder / "cut_in_the_middle.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "bytes_behind_the_end.jpg").write_bytes(whole + b"\0" * 100)


def nvjpeg(section: Section) -> None:
    """Decode on the device: every kind of file, a race with queued kernels, images per second."""
    for file in sorted((section.images / "kinds").iterdir()):
        section.attempt(file.stem, decode_kind, file, section.device)
    photographs = sorted((section.images / "train").rglob("*.jpg"))[:64]
    section.attempt("damaged", decode_damaged, section, photographs[0].read_bytes())
    files = [read(path) for path in photographs]
    if section.is_cuda:
        section.attempt("race of the decoder", race_of_decoder, section, files)
    decode = partial(decode_on_device, files, section.device)
    section.attempt("decoding", section.rate_of, decode, len(files), 1, 1)


def read(path: Path) -> tuple[str, int, Tensor]:
    """Return the path of a file, the orientation of its image, and its bytes, (n,) uint8."""
    head = read_jpeg_head(path.read_bytes())
    orientation = head.orientation if head else 1
    return str(path), orientation, torch.from_numpy(np.fromfile(path, np.uint8))


def augment(section: Section) -> None:
    """Crop and resize on the device: the workers' bytes, in one go and one by one; milliseconds.

    Of these are the host's own, before it waits for the device, and all.
    """
    count, (height, width), crop_size = section.size((256, (400, 500), 224), (256, (14, 12), 12))
    rng = np.random.default_rng(0)
    photos = rng.integers(0, 256, (count, height, width, 3), np.uint8)
    samples = [(rgb, random_crop(height, width, rng)) for rgb in photos]
    packed = pack([(cut_strips(*sample), sample[1]) for sample in samples], crop_size)
    images = packed.pin_memory() if section.is_cuda else packed
    whole = torch.from_numpy(photos).to(section.device).permute(0, 3, 1, 2)
    single = list(zip(whole, (crop for _, crop in samples), strict=True))

    crops = images.crop(section.device).cpu().permute(0, 2, 3, 1).numpy()
    expected = np.stack([standard_train(*sample, crop_size) for sample in samples])
    section.note(bytes_that_differ=int((crops != expected).sum()), bytes=crops.size)
    section.attempt("at once", host_and_all, section, partial(images.crop, section.device))
    section.attempt("one by one", host_and_all, section, partial(one_by_one, single, crop_size))


def one_by_one(samples: list[tuple[Tensor, Crop]], crop_size: int) -> Tensor:
    """Crop, resize and mirror images (3, H, W) with torchvision's own calls, (B, 3, S, S)."""
    crops = []
    for image, crop in samples:
        size = [crop_size, crop_size]
        resized = functional.resized_crop(image, *crop[:4], size=size, antialias=True)
        crops.append(resized.flip(2) if crop.mirrored else resized)
    return torch.stack(crops)


def host_and_all(section: Section, call: Callable[[], Any]) -> dict[str, float]:
    """Return the milliseconds after which a call returns, and those until the device is ready."""
    times, host = 10, 0.0
    section.seconds_of(call, 1, 1)
    for _ in range(times):
        begin = time.perf_counter()
        call()
        host += time.perf_counter() - begin
        section.sync()
    return {"host ms": 1e3 * host / times, "ms": 1e3 * section.seconds_of(call, times)}


def decode_kind(file: Path, device: torch.device) -> dict[str, Any]:
    """Decode a file on the device and on the CPU; say what each made of it, in grey levels."""
    try:
        is_left = isinstance(read_file(image_set_of([str(file)]), 0), JpegFile)
        expected = decode_image(file.read_bytes(), str(file)).astype(int)
    except Exception as error:
        return {"CPU": described(error)}

    [found] = decode_on_device([read(file)], device)
    pixels = found.permute(1, 2, 0).cpu().numpy().astype(int)
    row = {"left to the device": is_left, "shapes": [pixels.shape, expected.shape]}
    if pixels.shape == expected.shape:
        gap = np.abs(pixels - expected)
        row["levels"] = [float(gap.mean()), int(gap.max())]
    return row


def decode_damaged(section: Section, whole: bytes) -> dict[str, int]:
    """Damage a file in many places; count who makes an image of it, the device or the CPU."""
    rng, found = np.random.default_rng(0), Counter[str]()
    file = section.own / "damaged.jpg"
    for _ in range(section.size(300, 20)):
        start, length = int(rng.integers(2, len(whole) - 40)), int(rng.integers(1, 33))
        middles = rng.bytes(length), bytes(length), b"", rng.bytes(length) + whole[start:][:length]
        behind = whole[start + length :]
        file.write_bytes(whole[:start] + middles[int(rng.integers(len(middles)))] + behind)
        found[" and ".join(who for who in ("device", "CPU") if decodes(file, who, section))] += 1
    return {f"by {who or 'nobody'}": number for who, number in found.items()}


def decodes(file: Path, who: str, section: Section) -> bool:
    """Whether the device, or the CPU, makes an image of a file."""
    try:
        if who == "CPU":
            decode_image(file.read_bytes(), str(file))
        elif isinstance(read_file(image_set_of([str(file)]), 0), JpegFile):
            decode_on_device([read(file)], section.device)
    except ImageError:
        return False
    return True


def race_of_decoder(section: Section, files: list[tuple[str, int, Tensor]]) -> dict[str, int]:
    """Let kernels read memory that Python has freed while the decoder runs; count wrong sums."""
    device, found = section.device, {"memory reused": 0, "sums wrong": 0}
    shapes = [image.shape for image in decode_on_device(files, device)]
    for value in range(1, 21):
        held = [torch.full(shape, value, dtype=torch.uint8, device=device) for shape in shapes]
        places = {tensor.data_ptr() for tensor in held}
        section.sync()
        torch.cuda._sleep(int(2e8))  # about 0.1 s
        sums = torch.stack([tensor.sum(dtype=torch.int64) for tensor in held])
        del held

        decoded = decode_on_device(files, device)
        found["memory reused"] += bool(places & {image.data_ptr() for image in decoded})
        expected = torch.tensor([shape.numel() * value for shape in shapes])
        found["sums wrong"] += not torch.equal(sums.cpu(), expected)
        del decoded
    return found
