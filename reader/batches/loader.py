"""Loaders read, transform and batch images in worker processes."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from metric_learning.reader.batches.batch import Batch, collate_training
from metric_learning.reader.batches.training import Reading, TrainImages
from metric_learning.reader.preprocessing import Preprocessing
from metric_learning.reader.sets.image_set import ImageError, ImageSet
from metric_learning.reader.transforms import TRANSFORMS

B = TypeVar("B")  # what a loader yields


class WorkerError(OSError):
    """A process that reads images was killed, or has no memory to hand its images over."""


class Sampler(Protocol):
    """What the loader needs of a sampler of reader/samplers.py."""

    batch_size: int
    rank: int
    world_size: int
    note: str  # what the log should say of it; empty: nothing

    def batch(self, step: int) -> np.ndarray:
        """Return the image indices of this rank's share of global batch `step`."""


class ImageLoader(Generic[B]):
    """Iterable of batches whose length is their number.

    It is made for one pass: workers live as long as that, in a training as long as the run.

    Raises:
        ImageError: on iteration, at the batch that holds an unreadable image.
        WorkerError: on iteration, where a worker process was killed.
    """

    def __init__(
        self,
        dataset: Dataset,
        batches: _TrainBatches | _EvalBatches,
        collate: Callable[[Any], B | ImageError],
        *,
        workers: int,
        pin: bool,
        prefetch: int | None = None,
    ) -> None:
        self._loader = DataLoader(
            dataset,
            batch_sampler=batches,  # type: ignore[arg-type]
            num_workers=workers,
            collate_fn=partial(_hand_over, collate),
            pin_memory=pin,
            worker_init_fn=_init_worker,
            prefetch_factor=prefetch if workers else None,
            # A generator of its own leaves torch's global random state as it is.
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[B]:
        try:
            for batch in _start(self._loader):
                if isinstance(batch, ImageError | WorkerError):
                    raise batch
                yield batch
        except (RuntimeError, ConnectionError, EOFError, FileNotFoundError) as error:
            # The last three: it was killed after it had said that a batch is there.
            reason = (str(error) or type(error).__name__).splitlines()[0]
            if isinstance(error, RuntimeError) and not reason.startswith("DataLoader worker (pid"):
                raise
            raise WorkerError(
                f"a process that reads images was killed ({reason}), perhaps for lack of memory: "
                "lower --num_workers or the batch size"
            ) from error


def _start(loader: DataLoader) -> Iterator[Any]:
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
    index: ImageSet,
    sampler: Sampler,
    preprocessing: Preprocessing,
    *,
    start_step: int,
    end_step: int,
    seed: int,
    num_workers: int,
    pin_memory: bool,
    reading: Reading | None = None,
) -> ImageLoader[Batch]:
    """Return the batches of steps start_step .. end_step - 1, for `reader.device.to_inputs`.

    The augmentation of an image derives from the seed, the step and its position in the global
    batch alone, and so does what replaces a broken one: neither the number of workers or ranks nor
    the step of a resume changes it.
    """
    reading = reading or Reading()
    return ImageLoader(
        TrainImages(index, preprocessing, seed, reading),
        _TrainBatches(sampler, start_step, end_step),
        collate_training,
        workers=num_workers,
        pin=pin_memory,
        prefetch=reading.prefetch,
    )


def eval_loader(
    index: ImageSet,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    num_workers: int,
    pin_memory: bool,
    indices: Sequence[int] | np.ndarray | None = None,
) -> ImageLoader[tuple[torch.Tensor, torch.Tensor]]:
    """Return all images, or those of `indices`, once each and in order; the last batch is short.

    Shape:
        yields: images (B, 3, S, S) float32, normalised, and labels (B,) int64.
    """
    if batch_size < 1:
        raise ValueError(f"expected a batch size of 1 or more, got {batch_size}")
    chosen = np.arange(len(index)) if indices is None else np.asarray(indices)
    return ImageLoader(
        _EvalImages(index, preprocessing),
        _EvalBatches(chosen, batch_size),
        _collate_evaluation,
        workers=num_workers,
        pin=pin_memory,
    )


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


class _EvalImages(Dataset):
    """Images by index, without augmentation; an unreadable image is returned as its error."""

    def __init__(self, index: ImageSet, preprocessing: Preprocessing) -> None:
        self._index, self._preprocessing = index, preprocessing

    def __getitem__(self, i: int) -> tuple[np.ndarray, int] | ImageError:
        options = self._preprocessing
        try:
            rgb = self._index.read_image(i)
        except ImageError as error:
            return error
        transform = TRANSFORMS[options.transform][1]
        image = transform(rgb, options.crop_size, mean=options.mean, std=options.std)
        return image, int(self._index.labels[i])


def _collate_evaluation(
    samples: list[tuple[np.ndarray, int] | ImageError],
) -> tuple[torch.Tensor, torch.Tensor] | ImageError:
    """Stack a batch, or hand on its first error: exceptions would arrive as tracebacks."""
    images, labels = [], []
    for sample in samples:
        if isinstance(sample, ImageError):
            return sample
        images.append(sample[0])
        labels.append(sample[1])
    return torch.from_numpy(np.stack(images)), torch.tensor(labels, dtype=torch.int64)


def _hand_over(collate: Callable[[Any], Any], samples: list[Any]) -> Any:
    """Collate a batch, and in a worker move it to shared memory, where the main process gets it.

    It would get there by itself, but in a thread whose error nobody receives: the main process
    would wait for ever.
    """
    batch = collate(samples)
    if get_worker_info() is not None and isinstance(batch, tuple):
        try:
            for tensor in _tensors_of(batch):
                tensor.share_memory_()
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            return WorkerError(
                f"no shared memory for a batch of images ({reason}): lower --num_workers or the "
                "batch size, or give /dev/shm more (docker run --shm-size)"
            )
    return batch


def _tensors_of(batch: tuple[Any, ...]) -> Iterator[torch.Tensor]:
    for value in batch:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, tuple):
            yield from _tensors_of(value)


def _init_worker(worker: int) -> None:
    """Keep the worker on one thread: thread pools do not survive a fork and would compete.

    Signals to stop often reach all processes of a run; the main one decides, and ends its workers.
    """
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
