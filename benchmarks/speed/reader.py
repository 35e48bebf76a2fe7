"""Compare the cost of reading training images: this project's ways, Pillow's and torchvision's.

python -m benchmarks.speed.reader --rounds=5

All ways read the same JPEG files in turns, in one process on one thread, after a warm-up; what
counts is the ratio of images per second of CPU time to those of `pillow_v1` in the same run.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image
from torchvision import transforms as v1
from torchvision.io import ImageReadMode, decode_jpeg, read_file
from torchvision.transforms import v2

from benchmarks import common
from benchmarks.common import Rounds
from metric_learning.common.cli import user_errors
from metric_learning.common.flags import Flag, parse_flags, positive
from metric_learning.reader.batches.cache_build import open_cache
from metric_learning.reader.batches.loader import Reading, to_inputs, train_loader
from metric_learning.reader.preprocessing import Preprocessing
from metric_learning.reader.sets.image_set import ImageSet
from metric_learning.reader.transforms import IMAGENET_MEAN, IMAGENET_STD

BASELINE = "pillow_v1"
CACHE_SIZE = 256  # short side of the images in the cache, in pixels
# Octaves of noise: distance of its points in pixels -> strength in grey levels; at 400 x 500
# pixels and quality 90 a file has about 56 KB, as photographs of that size have.
NOISE = {64: 40, 16: 40, 4: 17, 1: 1.5}
QUALITY = 90
Batches = Iterator[torch.Tensor]


class Work(NamedTuple):
    """What is to be read: JPEG files, to crops of S pixels, by a cache in `folder` or without."""

    image_set: ImageSet
    batch_size: int
    crop_size: int
    folder: Path
    cache_size: int


class Way(NamedTuple):
    """One way to read: what prepares a function that reads all images; what it does, for people."""

    prepare: Callable[[Work], Callable[[], Batches]]
    job: str


def write_images(folder: Path, count: int, size: tuple[int, int], seed: int) -> None:
    """Write synthetic photographs of a height and width as JPEG files: noise of several scales."""
    height, width = size
    rng = np.random.default_rng(seed)

    for number in range(count):
        image = np.full((height, width, 3), 128, np.float32)
        for step, strength in NOISE.items():
            shape = height // step + 2, width // step + 2, 3
            points = strength * rng.standard_normal(shape, np.float32)
            image += cv2.resize(points, (width, height), interpolation=cv2.INTER_CUBIC)

        pixels = Image.fromarray(image.clip(0, 255).astype(np.uint8))
        pixels.save(folder / f"{number:05d}.jpg", quality=QUALITY)


def image_set_of(paths: Sequence[str]) -> ImageSet:
    """Return an image set of these files, all of one class."""
    everything = np.ones(len(paths), bool)
    labels = np.zeros(len(paths), np.int64)
    return ImageSet("benchmark", "train", list(paths), labels, {0: "0"}, everything, everything)


def of_torchvision(job: str, decode: Callable[[str], Any], of: Any, *to_floats: Any) -> Way:
    """Return decoding and augmenting by the first or second transforms of torchvision."""

    def prepare(work: Work) -> Callable[[], Batches]:
        crop, flip = of.RandomResizedCrop(work.crop_size), of.RandomHorizontalFlip()
        augment = of.Compose([crop, flip, *to_floats, of.Normalize(IMAGENET_MEAN, IMAGENET_STD)])
        paths, size = work.image_set.paths, work.batch_size

        def read() -> Batches:
            for start in range(0, len(paths), size):
                yield torch.stack([augment(decode(path)) for path in paths[start : start + size]])

        return read

    return Way(prepare, job)


def read_by_pillow(path: str) -> Image.Image:
    """Decode a file with Pillow."""
    return Image.open(io.BytesIO(Path(path).read_bytes()), formats=("JPEG",)).convert("RGB")


def of_this(
    transform: str, hand_over: str = "crops", *, cached: bool = False, for_gpu: bool = False
) -> Way:
    """Return this project's own loader, without workers, as a way to read."""

    def prepare(work: Work) -> Callable[[], Batches]:
        images, sampler = work.image_set, InOrder(len(work.image_set), work.batch_size)
        if cached:
            one: Any = {"num_workers": 1, "on_bad_image": "error", "log": lambda line: None}
            images = open_cache(images, work.folder / "cache", work.cache_size, **one)
        preprocessing = Preprocessing(transform, work.crop_size, IMAGENET_MEAN, IMAGENET_STD)
        options: Any = {"seed": 0, "num_workers": 0, "pin_memory": False, "start_step": 0}
        options |= {"end_step": sampler.num_batches, "reading": Reading(hand_over)}

        def read() -> Batches:
            for batch in train_loader(images, sampler, preprocessing, **options):
                pixels: Any = batch.images
                yield pixels if for_gpu else to_inputs(batch, preprocessing, torch.device("cpu"))

        return read

    job = f"this project, --transform={transform}{' --cache' if cached else ''}"
    if hand_over == "images":
        job += " --augment_on=device" + ("" if for_gpu else ", the device being the CPU")
    return Way(prepare, job + (", without what a GPU does" if for_gpu else ""))


class InOrder:
    """A sampler that takes all images in order; the last batch is short."""

    rank, world_size, note = 0, 1, ""

    def __init__(self, num_images: int, batch_size: int) -> None:
        self.num_images, self.batch_size = num_images, batch_size
        self.num_batches = -(-num_images // batch_size)

    def batch(self, step: int) -> np.ndarray:
        """Return the image indices of batch `step`."""
        start = step * self.batch_size
        return np.arange(start, min(start + self.batch_size, self.num_images))


WAYS: dict[str, Way] = {
    "pillow_v1": of_torchvision(
        "Pillow, torchvision.transforms (the baseline)", read_by_pillow, v1, v1.ToTensor()
    ),
    "pillow_v2": of_torchvision(
        "Pillow, torchvision.transforms.v2 on bytes",
        lambda path: v2.functional.to_image(read_by_pillow(path)),
        v2,
        v2.ToDtype(torch.float32, scale=True),
    ),
    "torchvision": of_torchvision(
        "torchvision.io, torchvision.transforms.v2 on bytes",
        lambda path: decode_jpeg(read_file(path), mode=ImageReadMode.RGB),
        v2,
        v2.ToDtype(torch.float32, scale=True),
    ),
    "standard": of_this("standard"),
    "standard_for_gpu": of_this("standard", for_gpu=True),
    "reference": of_this("reference"),
    "device": of_this("standard", "images"),
    "device_for_gpu": of_this("standard", "images", for_gpu=True),
    "cache_standard": of_this("standard", cached=True),
    "cache_standard_for_gpu": of_this("standard", cached=True, for_gpu=True),
    "cache_device_for_gpu": of_this("standard", "images", cached=True, for_gpu=True),
    "cache_reference": of_this("reference", cached=True),
}
FLAGS = (
    Flag("images", positive, 200, "number of images"),
    Flag("size", common.height_and_width, (400, 500), "height and width of the images"),
    Flag("batch_size", positive, 32, "images per batch"),
    Flag("crop_size", positive, 224, "side of the network input in pixels"),
    Flag("rounds", positive, 5, "times that each way is measured"),
    Flag("methods", common.names_among(WAYS), tuple(WAYS), "what is measured"),
)


def main(argv: Sequence[str] | None = None) -> Rounds:
    """Print the table in Markdown; return what each round of each way took."""
    with user_errors(), tempfile.TemporaryDirectory() as folder:
        flags = parse_flags(__doc__, FLAGS, argv)
        write_images(Path(folder), flags.images, flags.size, seed=0)
        files = sorted(Path(folder).iterdir())
        kilobytes = sum(file.stat().st_size for file in files) / len(files) / 1000
        image_set = image_set_of([str(file) for file in files])
        work = Work(image_set, flags.batch_size, flags.crop_size, Path(folder), CACHE_SIZE)
        rounds = measure(work, flags.methods, flags.rounds)

        conditions = (
            f"{len(files)} synthetic JPEG files of {flags.size[1]} x {flags.size[0]} pixels, "
            f"quality {QUALITY}, {kilobytes:.0f} KB on average, to batches of {flags.batch_size} "
            f"at {flags.crop_size} pixels, normalised float32 unless said otherwise; random "
            f"resized crop and flip. {flags.rounds} rounds in turns after a warm-up, the best of "
            f"them counts; one process, one thread. Cache: short side {CACHE_SIZE} pixels."
        )
        notes = common.notes(
            "reader", argv, conditions, rounds, {name: WAYS[name].job for name in rounds}
        )
        print(table(len(files), rounds), notes, sep="\n\n")
        return rounds


def measure(work: Work, names: Sequence[str], num_rounds: int) -> Rounds:
    """Read all files in all ways, in turns on one thread; what each round took."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    try:
        reads = {name: WAYS[name].prepare(work) for name in names}
        for read in reads.values():
            measure_once(read)  # warms up
        return common.in_turns(names, num_rounds, lambda name: measure_once(reads[name]))
    finally:
        torch.set_num_threads(num_threads)


def measure_once(read: Callable[[], Batches]) -> dict[str, float]:
    """Read all images once: CPU and wall seconds."""
    start = common.clocks()
    for _ in read():
        pass
    return common.seconds_of(common.clocks() - start)


def table(count: int, rounds: Rounds) -> str:
    """Return the Markdown table: a row per way of reading `count` images, its best round."""
    cpu, wall = (
        {name: [count / each[what] for each in found] for name, found in rounds.items()}
        for what in ("cpu_seconds", "wall_seconds")
    )
    baseline = max(cpu.get(BASELINE, [0]))
    rows = [
        [name, f"{max(rates):.0f}", f"{max(rates) / baseline:.2f}" if baseline else ""]
        + [f"{max(wall[name]):.0f}", ", ".join(f"{rate:.0f}" for rate in rates)]
        for name, rates in cpu.items()
    ]
    titles = ("method", "images per CPU second", f"times {BASELINE}", "images per second")
    return common.markdown((*titles, "of each round"), rows)


if __name__ == "__main__":
    main()
