"""Draws the images that other sections read, and decodes them on the device."""

from __future__ import annotations

import io
import math
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.gpu.runs import Stepper, photo_words
from benchmarks.gpu.section import Section, described, relative
from benchmarks.speed.reader_ways import image_set_of, write_images
from metric_learning.data.make_demo import make_demo
from metric_learning.reader.batches import on_device
from metric_learning.reader.batches.on_device import JpegFile, decode_on_device, read_file
from metric_learning.reader.sets.image_set import decode_image

ROTATED = 6  # of Exif's tag Orientation
EXIF_ORIENTATION = 0x0112
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
}


def draw(section: Section) -> None:
    """Draw photographs in classes, the demo data set, and JPEG files of all kinds."""
    num_classes, each = section.size((64, 16), (12, 4))
    size = section.size((400, 500), (40, 50))
    root, begin = section.work / "images", time.monotonic()
    with ProcessPoolExecutor(section.workers) as pool:
        jobs = [pool.submit(draw_class, root, n, each, size) for n in range(num_classes)]
        demo_size = section.size((100, 8), (12, 4))
        jobs.append(pool.submit(make_demo, section.work / "demo", *demo_size))  # type: ignore[arg-type]
        draw_kinds(root / "kinds", size)
        for job in jobs:
            job.result()

    files = sorted((root / "train").rglob("*.jpg"))
    lines = [f"{file} {int(file.parent.name[-3:])}\n" for file in files]
    (root / "train.txt").write_text("".join(lines))
    (section.work / "data.done").touch()
    section.note(drawn_in=time.monotonic() - begin, jpegs=len(files))


def draw_class(root: Path, number: int, count: int, size: tuple[int, int]) -> None:
    """Draw the photographs of a class."""
    folder = root / "train" / f"class_{number:03d}"
    folder.mkdir(parents=True, exist_ok=True)
    write_images(folder, count, size, number)


def draw_kinds(folder: Path, size: tuple[int, int]) -> None:
    """Draw one photograph as a JPEG file of every kind, broken ones among them."""
    folder.mkdir(parents=True)
    write_images(folder, 1, size, 7)
    with Image.open(folder / "00000.jpg") as file:
        image = file.copy()
    (folder / "00000.jpg").unlink()
    for name, (mode, options) in KINDS.items():
        image.convert(mode).save(folder / f"{name}.jpg", quality=90, **options)
    image.crop((0, 0, 17, 13)).save(folder / "tiny_17x13.jpg", quality=90)

    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = ROTATED
    image.save(folder / "exif_rotated.jpg", quality=90, exif=exif)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    whole = buffer.getvalue()
    (folder / "cut_in_the_middle.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "bytes_behind_the_end.jpg").write_bytes(whole + b"\0" * 100)


def nvjpeg(section: Section) -> None:
    """Decode on the device: every kind of file, races with queued kernels, images per second."""
    images = section.images()
    for file in sorted((images / "kinds").iterdir()):
        section.attempt(file.stem, partial(decode_kind, file, section.device))

    paths = sorted((images / "train").rglob("*.jpg"))[:64]
    files = [(str(path), as_tensor(path.read_bytes())) for path in paths]
    if section.is_cuda:
        section.attempt("race of the decoder", lambda: race_of_decoder(section, files))
    section.attempt("race in training", lambda: race_in_training(section, images), needs=15)

    def speed() -> dict[str, float]:
        decode = partial(decode_on_device, files, section.device)
        return {"images/s": len(files) / section.seconds_of(decode, section.size(5, 1), 1)}

    section.attempt("decoding", speed)


def as_tensor(data: bytes) -> Tensor:
    """Return bytes as a tensor (n,) uint8."""
    return torch.from_numpy(np.frombuffer(data, np.uint8).copy())


def decode_kind(file: Path, device: torch.device) -> dict[str, Any]:
    """Decode a file on the device and on the CPU; say what each made of it, in grey levels."""
    data = file.read_bytes()
    row: dict[str, Any] = {}
    try:
        offered = read_file(image_set_of([str(file)]), 0)
        row["left to the device"] = isinstance(offered, JpegFile)
        expected = decode_image(data, str(file)).astype(int)
    except Exception as error:
        return row | {"cpu": described(error)}

    [found] = decode_on_device([(str(file), as_tensor(data))], device)
    pixels = found.permute(1, 2, 0).cpu().numpy().astype(int)
    if pixels.shape != expected.shape:
        return row | {"shapes": [pixels.shape, expected.shape]}
    gap = np.abs(pixels - expected)
    return row | {"levels, mean and most": [float(gap.mean()), int(gap.max())]}


def race_of_decoder(section: Section, files: list[tuple[str, Tensor]]) -> dict[str, int]:
    """Let kernels read memory that Python has freed while the decoder runs; count wrong sums."""
    device, turns, wrong, reused = section.device, 20, 0, 0
    shapes = [tuple(image.shape) for image in decode_on_device(files, device)]
    for value in range(1, turns + 1):
        held = [torch.full(shape, value, dtype=torch.uint8, device=device) for shape in shapes]
        places = {tensor.data_ptr() for tensor in held}
        section.sync()
        torch.cuda._sleep(int(2e8))  # about 0.1 s
        sums = torch.stack([tensor.sum(dtype=torch.int64) for tensor in held])
        del held

        decoded = decode_on_device(files, device)
        reused += bool(places & {image.data_ptr() for image in decoded})
        expected = torch.tensor([math.prod(shape) * value for shape in shapes])
        wrong += not torch.equal(sums.cpu(), expected)
        del decoded
    return {"turns": turns, "memory reused": reused, "sums wrong": wrong}


def race_in_training(section: Section, images: Path) -> dict[str, float]:
    """Train with --decode_on=device, with and without a wait before each decoding.

    Returns:
        How far the weights are from those of the run that waits.
    """
    batch, chunk = section.size((128, 32), (8, 4))
    size = section.size(160, 32)
    more = [f"--image_shape=3,{size},{size}", "--samples_each_class=2", f"--chunk_size={chunk}"]
    more += ["--total_iter_num=4", "--amp=off", "--freeze_bn=True", "--decode_on=device"]
    words = photo_words(section, images, batch, *more)
    if not section.is_cuda:  # where nothing is decoded
        words.remove("--decode_on=device")
    torch.backends.cudnn.deterministic = True

    def waiting(*arguments: Any) -> list[Tensor]:
        section.sync()
        return decode_on_device(*arguments)

    ways = {"waits": waiting, "waits again": waiting, "as it is": decode_on_device}
    weights: dict[str, Tensor] = {}
    for name, decode in ways.items():
        with patch.object(on_device, "decode_on_device", decode):
            stepper = Stepper(2, words)
            for _ in range(4):
                stepper()
            weights[name] = stepper.weights()
    return {name: relative(found, weights["waits"]) for name, found in weights.items()}
