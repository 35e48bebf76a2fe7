"""Batches of training and test images: read and cropped by workers, normalised on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from metric_learning.reader.batches.cache import CacheError
from metric_learning.reader.batches.workers import (
    LOST_WORKER,
    check_descriptors,
    init_worker,
    no_resources,
    start_workers,
)
from metric_learning.reader.preprocessing import Preprocessing
from metric_learning.reader.sets.image_set import ImageError, ImageSet, WorkerError
from metric_learning.reader.transforms import TRANSFORMS, scale_and_shift

if TYPE_CHECKING:
    from metric_learning.reader.batches.on_device import DeviceImages, JpegFile

HAND_OVER = ("crops", "images", "files")
BAD_IMAGE_POLICIES = ("error", "skip")
# An error is raised when more of the training images than this share are broken; one may always be.
MAX_BROKEN_SHARE = 0.05

# Distinct from the streams of the samplers, so that these draws are unrelated to theirs.
_AUGMENTATION_STREAM, _REPLACEMENT_STREAM = 4, 5


class Batch(NamedTuple):
    """Images of one training step, or some test images."""

    # (B, 3, S, S) uint8 in channels-last order, cropped but not normalised; or training images
    # that are to be resized on the device; or kept features of them, (B, F) float32
    images: torch.Tensor | DeviceImages
    labels: torch.Tensor  # (B,) int64
    # path -> error of the unreadable images: others were drawn for them, in a test they are black
    broken: dict[str, str]

    def split(self, num_parts: int) -> list[Batch]:
        """Cut a batch of crops into parts of equal size, to within one image."""
        assert isinstance(self.images, torch.Tensor)
        bounds = [len(self.labels) * number // num_parts for number in range(num_parts + 1)]
        return [
            self._replace(images=self.images[start:stop], labels=self.labels[start:stop])
            for start, stop in zip(bounds, bounds[1:], strict=False)
        ]


class Sampler(Protocol):
    """What the loader needs of a sampler of reader/batches/samplers.py."""

    batch_size: int
    rank: int
    world_size: int
    note: str  # what the log should say about it; empty: nothing

    def batch(self, step: int) -> np.ndarray:
        """Return the image indices of this rank's share of global batch `step`."""


@dataclass(frozen=True)
class Reading:
    """How workers read training images."""

    # "crops"; "images", what is cut of them, to be resized on the device; or "files", JPEG files to
    # be decoded there too
    hand_over: str = "crops"
    on_bad_image: str = "error"  # "error", or "skip" to draw another image of the class instead
    prefetch: int = 2  # batches that each worker prepares ahead

    def __post_init__(self) -> None:
        assert self.hand_over in HAND_OVER
        assert self.on_bad_image in BAD_IMAGE_POLICIES


def train_loader(
    image_set: ImageSet,
    sampler: Sampler,
    preprocessing: Preprocessing,
    *,
    start_step: int,
    end_step: int,
    seed: int,
    num_workers: int,
    pin_memory: bool,
    reading: Reading | None = None,
) -> ImageLoader:
    """Return the batches of steps start_step .. end_step - 1.

    The augmentation of an image derives from the seed, the step and its position in the global
    batch alone, and so does what replaces a broken one: neither the number of workers or ranks nor
    the step of a resume changes it.
    """
    reading = reading or Reading()
    warm_up(preprocessing)
    batches = TrainBatches(image_set, sampler, preprocessing, seed, reading)
    steps = range(start_step, end_step)
    return ImageLoader(batches, steps, num_workers, pin_memory, reading.prefetch)


def eval_loader(
    image_set: ImageSet,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    num_workers: int,
    pin_memory: bool,
    indices: Sequence[int] | np.ndarray | None = None,
    on_bad_image: str = "error",
    before: Callable[[np.ndarray], object] | None = None,
) -> ImageLoader:
    """Return all images, or those of `indices`, once each and in order; the last batch is short.

    With `on_bad_image` "skip" unreadable ones are black, and their batches name them. If there is
    something to do `before` the images of a batch are read, it is given their indices (B,) int64.
    """
    if batch_size < 1:
        raise ValueError(f"expected a batch size of 1 or more, got {batch_size}")
    warm_up(preprocessing)
    chosen = np.arange(len(image_set)) if indices is None else np.asarray(indices, dtype=np.int64)
    batches = EvalBatches(image_set, preprocessing, chosen, batch_size, on_bad_image)
    numbers: range | Announced = range(-(-len(chosen) // batch_size))
    if before is not None:
        numbers = Announced(chosen, batch_size, before)
    return ImageLoader(batches, numbers, num_workers, pin_memory)


def warm_up(preprocessing: Preprocessing) -> None:
    """Import and compile what the transform needs, once: workers have it from their fork."""
    black = np.zeros((8, 8, 3), np.uint8)
    TRANSFORMS[preprocessing.transform].test(black, 4)
    preprocessing.augmentation.change(black, np.random.default_rng(0), preprocessing.mean)


def to_crops(batch: Batch, preprocessing: Preprocessing, device: torch.device) -> torch.Tensor:
    """Return the crops of a batch on the device, (B, 3, S, S) uint8 in channels-last order.

    Raises:
        ImageError: an image that is decoded here is broken.
    """
    images = batch.images
    if isinstance(images, torch.Tensor):
        return images.to(device, non_blocking=True)
    return images.crop(device)


def to_inputs(batch: Batch, preprocessing: Preprocessing, device: torch.device) -> torch.Tensor:
    """Return the network inputs of a batch on the device, from `to_crops`.

    (B, 3, S, S) float32 in channels-last order, in which convolutions are fastest. Features are
    inputs as they are.
    """
    crops = to_crops(batch, preprocessing, device)
    if crops.is_floating_point():
        return crops
    return normalise(crops, preprocessing.mean, preprocessing.std)


def normalise(
    images: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]
) -> torch.Tensor:
    """Map (B, 3, S, S) uint8 to (value / 255 - mean) / std, float32, both channels last.

    The product and the difference are rounded one after the other, as for a single image: on all
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


@dataclass(frozen=True, eq=False)
class TrainBatches(Dataset):
    """This rank's training batches by step; that of an unreadable image is its error.

    Augmentation and replacements derive from the seed and the draw alone: the number of the image
    since step 0, over all ranks.
    """

    image_set: ImageSet
    sampler: Sampler
    preprocessing: Preprocessing
    seed: int
    reading: Reading

    def __getitem__(self, step: int) -> Batch | ImageError | WorkerError:
        return _or_its_error(lambda: self.read(step))

    def read(self, step: int) -> Batch:
        """Return the batch of a step, or raise ImageError or WorkerError."""
        indices = self.sampler.batch(step)
        first = step * self.sampler.batch_size + self.sampler.rank * len(indices)
        broken: dict[str, str] = {}
        samples = [self._sample(int(i), first + n, broken) for n, i in enumerate(indices)]
        if self.reading.hand_over == "crops":
            images: torch.Tensor | DeviceImages = stack(samples)
        else:
            from metric_learning.reader.batches.on_device import pack

            images = pack(samples, self.preprocessing.crop_size)
        return Batch(images, torch.from_numpy(self.image_set.labels[indices]), broken)

    def _sample(self, i: int, draw: int, broken: dict[str, str]) -> Any:
        """Return the crop of image i, or what the device makes it of, and the crop's place."""
        image = self._read_or_replace(i, draw, broken)
        options = self.preprocessing
        rng = np.random.default_rng([_AUGMENTATION_STREAM, self.seed, draw])
        if isinstance(image, np.ndarray):
            image = options.resize_first(image)
        height, width = image.shape[:2]
        crop = options.draw_crop(height, width, rng)
        if not isinstance(image, np.ndarray):
            return image, crop
        if self.reading.hand_over != "crops":
            from metric_learning.reader.batches.resize import cut_strips

            return cut_strips(image, crop), crop
        return options.train_crop(image, crop, rng)

    def _read_or_replace(self, i: int, draw: int, broken: dict[str, str]) -> np.ndarray | JpegFile:
        """Read image i or, where it is unreadable and that is allowed, another of its class."""
        reasons = []
        for candidate in self._candidates(i, draw):
            try:
                return self._read(candidate)
            except ImageError as error:
                if isinstance(error, CacheError) or self.reading.on_bad_image == "error":
                    raise
                reasons.append(str(error))
                broken[self.image_set.name_of(candidate)] = reasons[-1]

        name = self.image_set.class_names[int(self.image_set.labels[i])]
        raise ImageError(
            f"class {name} has no readable image among its {len(reasons)}: {reasons[0]}; take the "
            "class out or repair its files"
        )

    def _candidates(self, i: int, draw: int) -> Iterator[int]:
        """Yield image i, then the others of its class in an order that follows from the draw."""
        yield i
        others = np.flatnonzero(self.image_set.labels == self.image_set.labels[i])
        rng = np.random.default_rng([_REPLACEMENT_STREAM, self.seed, draw])
        yield from rng.permutation(others[others != i]).tolist()

    def _read(self, i: int) -> np.ndarray | JpegFile:
        if self.reading.hand_over != "files":
            return self.image_set.read_image(i, self.preprocessing.decoding)
        from metric_learning.reader.batches.on_device import read_file

        return read_file(self.image_set, i, self.preprocessing.decoding)


@dataclass(frozen=True, eq=False)
class EvalBatches(Dataset):
    """Batches of the test images `indices` by number; that of an unreadable image is its error.

    With `on_bad_image` "skip" such an image is black, and the batch names it.
    """

    image_set: ImageSet
    preprocessing: Preprocessing
    indices: np.ndarray
    batch_size: int
    on_bad_image: str = "error"

    def __getitem__(self, number: int) -> Batch | ImageError | WorkerError:
        return _or_its_error(lambda: self.read(number))

    def read(self, number: int) -> Batch:
        """Return a batch, or raise ImageError or WorkerError."""
        start = number * self.batch_size
        indices = self.indices[start : start + self.batch_size]
        broken: dict[str, str] = {}
        crops = stack([self._crop(int(i), broken) for i in indices])
        return Batch(crops, torch.from_numpy(self.image_set.labels[indices]), broken)

    def _crop(self, i: int, broken: dict[str, str]) -> np.ndarray:
        """Read and crop image i, (S, S, 3) uint8; note it where it is unreadable and may be."""
        size, decoding = self.preprocessing.crop_size, self.preprocessing.decoding
        try:
            image = self.image_set.read_image(i, decoding)
        except ImageError as error:
            if self.on_bad_image == "error":
                raise
            broken[self.image_set.name_of(i)] = str(error)
            return np.zeros((size, size, 3), np.uint8)
        return self.preprocessing.test_crop(image)


@dataclass(frozen=True, eq=False)
class Announced:
    """The numbers of the batches of `indices`, each after `before` was given its indices."""

    indices: np.ndarray
    batch_size: int
    before: Callable[[np.ndarray], object]

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[int]:
        for number in range(len(self)):
            start = number * self.batch_size
            self.before(self.indices[start : start + self.batch_size])
            yield number


def stack(crops: Sequence[np.ndarray]) -> torch.Tensor:
    """Stack crops (S, S, 3) uint8 to (B, 3, S, S) in channels-last order."""
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)


def check_broken(num_broken: int, num_images: int) -> None:
    """Raise ImageError where more training images are broken than may be skipped."""
    allowed = max(1, int(MAX_BROKEN_SHARE * num_images))
    if num_broken > allowed:
        raise ImageError(
            f"{num_broken} broken images among {num_images}: --on_bad_image=skip tolerates "
            f"{allowed} ({MAX_BROKEN_SHARE:.0%}); repair the data set, python -m reader.check "
            "lists what is wrong"
        )


class ImageLoader:
    """Iterable of the batches of these numbers, in order; its length is their number.

    It is made for one pass: workers live as long as that, in a training as long as the run.
    `broken` has the unreadable images of the batches so far, path -> error.

    Raises:
        ImageError: on iteration, at the batch that holds an unreadable image.
        WorkerError: on iteration, where a worker process cannot be started, was killed, or lacks
            memory or descriptors.
    """

    def __init__(
        self,
        batches: Dataset,
        numbers: range | Announced,
        num_workers: int,
        pin_memory: bool,
        prefetch: int = 2,
    ) -> None:
        self.broken: dict[str, str] = {}
        self._loader: DataLoader = DataLoader(
            batches,
            sampler=numbers,
            batch_size=None,
            num_workers=num_workers,
            collate_fn=_hand_over,
            pin_memory=pin_memory,
            worker_init_fn=init_worker,
            prefetch_factor=prefetch if num_workers else None,
            # A generator of its own leaves torch's global random state as it is.
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        try:
            for batch in start_workers(self._loader):
                if isinstance(batch, ImageError | WorkerError):
                    raise batch
                self.broken.update(batch.broken)
                yield batch

        except WorkerError:
            raise
        except (RuntimeError, OSError, EOFError) as error:
            # The last two: it was killed after it had said that a batch is there.
            reason = (str(error) or type(error).__name__).splitlines()[0]
            is_ours = isinstance(error, RuntimeError) and not reason.startswith(LOST_WORKER)
            if is_ours or self._loader.num_workers == 0:
                raise
            if "open files" in reason or "ancdata" in reason:
                raise no_resources("batches of processes that read cannot be received") from error
            raise WorkerError(
                f"a process that reads images was killed ({reason}), perhaps for lack of memory: "
                "lower --num_workers or the batch size"
            ) from error


def _hand_over(batch: Any) -> Any:
    """In a worker, move a batch to shared memory, where the main process gets it.

    It would get there by itself, but in a thread whose error nobody receives: the main process
    would wait for ever.
    """
    if get_worker_info() is not None and isinstance(batch, Batch):
        try:
            check_descriptors()
            batch.images.share_memory_()
            batch.labels.share_memory_()
        except (RuntimeError, OSError) as error:
            reason = str(error).splitlines()[0]
            if "open files" in reason:
                return no_resources(f"a batch of images cannot be handed over ({reason})")
            return WorkerError(
                f"no shared memory for a batch of images ({reason}): lower --num_workers or the "
                "batch size, or give /dev/shm more (docker run --shm-size)"
            )
    return batch


def _or_its_error(read: Callable[[], Batch]) -> Batch | ImageError | WorkerError:
    """Read a batch, or return why it cannot be: raised in a worker, it would be a traceback."""
    try:
        return read()
    except (ImageError, WorkerError) as error:
        return error
    except MemoryError:
        return WorkerError("no memory to decode images: lower --num_workers or the batch size")
    except OSError as error:
        return WorkerError(f"images cannot be read ({error})")
