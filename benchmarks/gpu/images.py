"""Draws the images that other sections read, and decodes them on the device."""

from __future__ import annotations

import io
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.gpu.section import Section, described
from benchmarks.speed.reader import image_set_of, write_images
from metric_learning.data.make_demo import make_demo
from metric_learning.reader.batches.on_device import JpegFile, decode_on_device, read_file
from metric_learning.reader.sets.image_set import decode_image
from metric_learning.reader.sets.jpeg_head import read_jpeg_head

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
    files = [read(path) for path in sorted((section.images / "train").rglob("*.jpg"))[:64]]
    if section.is_cuda:
        section.attempt("race of the decoder", race_of_decoder, section, files)
    decode = partial(decode_on_device, files, section.device)
    section.attempt("decoding", section.rate_of, decode, len(files), 1, 1)


def read(path: Path) -> tuple[str, int, Tensor]:
    """Return the path of a file, the orientation of its image, and its bytes, (n,) uint8."""
    head = read_jpeg_head(path.read_bytes())
    orientation = head.orientation if head else 1
    return str(path), orientation, torch.from_numpy(np.fromfile(path, np.uint8))


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
