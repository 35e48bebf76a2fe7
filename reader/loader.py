"""Loaders read, transform and batch images in worker processes."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from reader.index import ImageError, Index
from reader.transforms import TRANSFORMS

# Distinct from the streams of reader/samplers.py, so that augmentation is unrelated to sampling.
_AUGMENTATION_STREAM = 4

Batch = tuple[torch.Tensor, torch.Tensor]  # images, labels


class WorkerError(OSError):
    """A process that reads images was killed, or has no memory to hand its images over."""


@dataclass(frozen=True)
class Preprocessing:
    """How images become network inputs.

    Args:
        transform: "reference" or "standard", a key of `reader.transforms.TRANSFORMS`.
        crop_size: S, side of the network input in pixels.
        mean: per channel, of values in 0..1.
        std: per channel, of values in 0..1.
        min_crop_area: smallest area of a training crop, as a fraction of the image.
        horizontal_flip: mirror every other training image.

    Raises:
        ValueError: an unknown transform or a size or area out of range.
    """

    transform: str
    crop_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    min_crop_area: float = 0.08
    horizontal_flip: bool = True

    def __post_init__(self) -> None:
        if self.transform not in TRANSFORMS:
            raise ValueError(
                f"expected a transform of {', '.join(TRANSFORMS)}, got {self.transform}: "
                "change --transform"
            )
        if self.crop_size < 1:
            raise ValueError(
                f"expected an image size of 1 pixel or more, got {self.crop_size}: "
                "change --image_shape"
            )
        if not 0 < self.min_crop_area <= 1:
            raise ValueError(
                "expected a smallest crop area above 0 and up to 1 (a fraction of the image), "
                f"got {self.min_crop_area}: change --min_crop_area"
            )


class Sampler(Protocol):
    """What the loader needs of a sampler of reader/samplers.py."""

    batch_size: int
    rank: int
    world_size: int
    note: str  # what the log should say of it; empty: nothing

    def batch(self, step: int) -> np.ndarray:
        """Return the image indices of this rank's share of global batch `step`."""


class ImageLoader:
    """Iterable of (images, labels) whose length is its number of batches.

    Shape:
        images: (B, 3, S, S) float32.
        labels: (B,) int64.

    Raises:
        ImageError: on iteration, at the batch that holds an unreadable image.
        WorkerError: on iteration, where a worker process was killed.
    """

    def __init__(
        self, dataset: Dataset, batches: _TrainBatches | _EvalBatches, workers: int, pin: bool
    ) -> None:
        self._loader = DataLoader(
            dataset,
            batch_sampler=batches,  # type: ignore[arg-type]
            num_workers=workers,
            collate_fn=_collate,
            pin_memory=pin,
            worker_init_fn=_init_worker,
            # A generator of its own leaves torch's global random state as it is.
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        try:
            for batch in _start(self._loader):
                if isinstance(batch, ImageError | WorkerError):
                    raise batch
                yield batch
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker (pid"):
                raise
            raise WorkerError(
                f"a process that reads images was killed ({str(error).splitlines()[0]}), perhaps "
                "for lack of memory: lower --num_workers or the batch size"
            ) from error


def _start(loader: DataLoader) -> Iterator[Batch | ImageError | WorkerError]:
    """Start the workers of a loader, and keep the handler of SIGCHLD that there was.

    PyTorch's would raise the error of a killed worker wherever the main process stands, such as
    in the middle of an update. Without it the loader finds out within 5 seconds of waiting for a
    batch.
    """
    if threading.current_thread() is not threading.main_thread():
        return iter(loader)
    handler = signal.getsignal(signal.SIGCHLD)
    batches = iter(loader)
    signal.signal(signal.SIGCHLD, handler)
    return batches


def train_loader(
    index: Index,
    sampler: Sampler,
    preprocessing: Preprocessing,
    *,
    start_step: int,
    end_step: int,
    seed: int,
    num_workers: int,
    pin_memory: bool,
) -> ImageLoader:
    """Return the batches of steps start_step .. end_step - 1, augmented.

    The augmentation of an image derives from the seed, the step and its position in the global
    batch alone: neither the number of workers or ranks nor the step of a resume changes it.
    """
    batches = _TrainBatches(sampler, start_step, end_step)
    dataset = _TrainImages(index, preprocessing, seed)
    return ImageLoader(dataset, batches, num_workers, pin_memory)


def eval_loader(
    index: Index,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    num_workers: int,
    pin_memory: bool,
    indices: Sequence[int] | np.ndarray | None = None,
) -> ImageLoader:
    """Return all images, or those of `indices`, once each and in order; the last batch is short."""
    if batch_size < 1:
        raise ValueError(f"expected a batch size of 1 or more, got {batch_size}")
    chosen = np.arange(len(index)) if indices is None else np.asarray(indices)
    batches = _EvalBatches(chosen, batch_size)
    return ImageLoader(_EvalImages(index, preprocessing), batches, num_workers, pin_memory)


class _TrainBatches:
    """Lists of (image index, number of the draw since step 0), one list per step."""

    def __init__(self, sampler: Sampler, start_step: int, end_step: int) -> None:
        self._sampler, self._steps = sampler, range(start_step, end_step)

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        sampler = self._sampler
        for step in self._steps:
            indices = sampler.batch(step)
            first = step * sampler.batch_size + sampler.rank * len(indices)
            yield [(int(i), first + position) for position, i in enumerate(indices)]


class _EvalBatches:
    """Lists of image indices in the given order."""

    def __init__(self, indices: np.ndarray, batch_size: int) -> None:
        self._indices, self._batch_size = indices, batch_size

    def __len__(self) -> int:
        return -(-len(self._indices) // self._batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for start in range(0, len(self._indices), self._batch_size):
            yield self._indices[start : start + self._batch_size].tolist()


class _TrainImages(Dataset):
    """Augmented images by (image index, draw); an unreadable image is returned as its error."""

    def __init__(self, index: Index, preprocessing: Preprocessing, seed: int) -> None:
        self._index, self._preprocessing, self._seed = index, preprocessing, seed

    def __getitem__(self, item: tuple[int, int]) -> tuple[np.ndarray, int] | ImageError:
        i, draw = item
        options = self._preprocessing
        transform = partial(
            TRANSFORMS[options.transform][0],
            crop_size=options.crop_size,
            rng=np.random.default_rng([_AUGMENTATION_STREAM, self._seed, draw]),
            min_crop_area=options.min_crop_area,
            horizontal_flip=options.horizontal_flip,
            mean=options.mean,
            std=options.std,
        )
        return _read_sample(self._index, i, transform)


class _EvalImages(Dataset):
    """Images by index, without augmentation; an unreadable image is returned as its error."""

    def __init__(self, index: Index, preprocessing: Preprocessing) -> None:
        self._index, self._preprocessing = index, preprocessing

    def __getitem__(self, i: int) -> tuple[np.ndarray, int] | ImageError:
        options = self._preprocessing
        transform = partial(
            TRANSFORMS[options.transform][1],
            crop_size=options.crop_size,
            mean=options.mean,
            std=options.std,
        )
        return _read_sample(self._index, i, transform)


def _read_sample(
    index: Index, i: int, transform: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, int] | ImageError:
    """Read and transform image i; an unreadable one is returned as its error."""
    try:
        rgb = index.read_image(i)
    except ImageError as error:
        return error
    return transform(rgb), int(index.labels[i])


def _collate(
    samples: list[tuple[np.ndarray, int] | ImageError],
) -> Batch | ImageError | WorkerError:
    """Stack a batch, or hand on its first error: exceptions would arrive as tracebacks."""
    images, labels = [], []
    for sample in samples:
        if isinstance(sample, ImageError):
            return sample
        images.append(sample[0])
        labels.append(sample[1])
    return _share((torch.from_numpy(np.stack(images)), torch.tensor(labels, dtype=torch.int64)))


def _share(batch: Batch) -> Batch | WorkerError:
    """Move a worker's batch to shared memory, through which the main process receives it.

    It would get there by itself, but in a thread whose error nobody receives: the main process
    would wait for ever.
    """
    if get_worker_info() is not None:
        try:
            for tensor in batch:
                tensor.share_memory_()
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            return WorkerError(
                f"no shared memory for a batch of images ({reason}): lower --num_workers or the "
                "batch size, or give /dev/shm more (docker run --shm-size)"
            )
    return batch


def _init_worker(worker: int) -> None:
    """Keep the worker on one thread: thread pools do not survive a fork and would compete.

    Signals to stop often reach all processes of a run; the main one decides, and ends its workers.
    """
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
