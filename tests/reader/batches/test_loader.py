"""Loaders: order, labels, independence of workers, ranks and resume, broken images."""

import errno
import multiprocessing
import os
import resource
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from metric_learning.reader.augment import Augmentation
from metric_learning.reader.batches import loader as loader_module
from metric_learning.reader.batches.loader import (
    WorkerError,
    eval_loader,
    to_inputs,
    train_loader,
)
from metric_learning.reader.batches.samplers import ClassBlockSampler, ShuffledSampler
from metric_learning.reader.preprocessing import Preprocessing
from metric_learning.reader.sets.image_set import ImageError, ImageSet
from metric_learning.reader.transforms import IMAGENET_MEAN, IMAGENET_STD, TRANSFORMS

PREPROCESSING = Preprocessing("reference", 16, IMAGENET_MEAN, IMAGENET_STD)
CPU = torch.device("cpu")


@pytest.fixture
def image_set(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(6), 4)
    paths = []
    for i in range(len(labels)):
        path = tmp_path / f"{i:02d}.png"
        size = rng.integers(12, 40, size=2)
        Image.fromarray(rng.integers(0, 256, size=(*size, 3), dtype=np.uint8)).save(path)
        paths.append(str(path))
    everything = np.ones(len(labels), dtype=bool)
    names = {label: str(label) for label in range(6)}
    return ImageSet("test", "train", paths, labels, names, everything, everything)


def _train(image_set, sampler, start=0, end=4, seed=0, workers=0, preprocessing=PREPROCESSING):
    loader = train_loader(
        image_set,
        sampler,
        preprocessing,
        start_step=start,
        end_step=end,
        seed=seed,
        num_workers=workers,
        pin_memory=False,
    )
    batches = list(loader)
    assert len(batches) == len(loader) == end - start
    images = [to_inputs(batch, preprocessing, CPU) for batch in batches]
    return torch.stack(images), torch.stack([batch.labels for batch in batches])


def _eval(image_set, workers=0, indices=None, batch_size=5, preprocessing=PREPROCESSING):
    loader = eval_loader(
        image_set,
        preprocessing,
        batch_size=batch_size,
        num_workers=workers,
        pin_memory=False,
        indices=indices,
    )
    batches = list(loader)
    assert len(batches) == len(loader)
    return batches


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("workers", [0, 2])
def test_eval_holds_every_image_once_in_order(image_set, workers, transform):
    preprocessing = replace(PREPROCESSING, transform=transform)
    batches = _eval(image_set, workers, preprocessing=preprocessing)
    assert [len(batch.labels) for batch in batches] == [5, 5, 5, 5, 4]
    for batch in batches:  # bytes, until they are on the device
        assert batch.images.dtype == torch.uint8
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert not batch.broken
    images = torch.cat([to_inputs(batch, preprocessing, CPU) for batch in batches])
    labels = torch.cat([batch.labels for batch in batches])
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    np.testing.assert_array_equal(labels, image_set.labels)
    single = TRANSFORMS[transform].eval
    expected = np.stack([single(image_set.read_image(i), 16) for i in range(len(image_set))])
    np.testing.assert_array_equal(images, expected)


def test_eval_of_a_subset(image_set):
    everything = torch.cat([batch.images for batch in _eval(image_set)])
    [batch] = _eval(image_set, indices=[7, 3, 20])
    assert torch.equal(batch.images, everything[[7, 3, 20]])
    assert batch.labels.tolist() == [1, 0, 5]
    assert _eval(image_set, indices=[]) == []


class Asked(ShuffledSampler):
    """A sampler that notes which process asked for which step."""

    def batch(self, step):
        with open(self.file, "a") as file:
            file.write(f"{step} {os.getpid()}\n")
        return super().batch(step)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_the_sampler_is_asked_by_those_who_read(image_set, tmp_path, workers):
    sampler = Asked(image_set.labels, 8)
    sampler.file = tmp_path / "asked"
    _train(image_set, sampler, start=2, end=6, workers=workers)
    asked = [line.split() for line in sampler.file.read_text().splitlines()]
    assert sorted(step for step, _ in asked) == ["2", "3", "4", "5"]
    processes = {int(process) for _, process in asked}
    assert len(processes) == max(workers, 1)
    assert (os.getpid() in processes) == (workers == 0)


@pytest.mark.parametrize("transform", ["reference", "standard"])
def test_training_does_not_depend_on_workers(image_set, transform):
    sampler = ClassBlockSampler(image_set.labels, 8, 2)
    preprocessing = replace(PREPROCESSING, transform=transform)
    images, labels = _train(image_set, sampler, preprocessing=preprocessing)
    assert images.shape == (4, 8, 3, 16, 16)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    for step in range(4):
        np.testing.assert_array_equal(labels[step], image_set.labels[sampler.batch(step)])
    for workers in (1, 2):
        other_images, other_labels = _train(
            image_set, sampler, workers=workers, preprocessing=preprocessing
        )
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)


def test_training_does_not_depend_on_where_it_resumed(image_set):
    images, labels = _train(image_set, ShuffledSampler(image_set.labels, 7), end=6)
    rest_images, rest_labels = _train(
        image_set, ShuffledSampler(image_set.labels, 7), start=3, end=6
    )
    assert torch.equal(images[3:], rest_images)
    assert torch.equal(labels[3:], rest_labels)


def test_ranks_together_see_the_global_batch(image_set):
    whole, _ = _train(image_set, ClassBlockSampler(image_set.labels, 8, 2))
    shares = [
        _train(image_set, ClassBlockSampler(image_set.labels, 8, 2, rank=rank, world_size=2))[0]
        for rank in range(2)
    ]
    assert torch.equal(whole, torch.cat(shares, dim=1))


def test_augmentation_follows_the_seed_and_the_draw(image_set):
    sampler = ShuffledSampler(image_set.labels[:1], 3)
    images, _ = _train(image_set, sampler, end=3)
    assert len({image.numpy().tobytes() for image in images.flatten(0, 1)}) == 9
    other, _ = _train(image_set, sampler, end=3, seed=1)
    assert not torch.equal(images, other)


@pytest.mark.parametrize("options", [{"horizontal_flip": False}, {"min_crop_area": 0.9}])
def test_options_reach_the_transform(image_set, options):
    draw_without_options, labels = _train(image_set, ShuffledSampler(image_set.labels, 8))
    preprocessing = replace(PREPROCESSING, augmentation=Augmentation(**options))
    images, same_labels = _train(
        image_set, ShuffledSampler(image_set.labels, 8), preprocessing=preprocessing
    )
    assert torch.equal(labels, same_labels)
    assert not torch.equal(images, draw_without_options)
    if not preprocessing.augmentation.horizontal_flip:
        equal = (images == draw_without_options).flatten(2).all(dim=2)
        mirrored = (images == draw_without_options.flip(-1)).flatten(2).all(dim=2)
        assert (equal | mirrored).all()
        assert 0.2 < mirrored.float().mean() < 0.8


def test_loading_leaves_the_global_random_state(image_set):
    state = torch.get_rng_state()
    _train(image_set, ShuffledSampler(image_set.labels, 8), workers=1)
    _eval(image_set)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("damage", ["missing", "truncated", "text"])
def test_a_broken_image_is_one_line_in_the_main_process(image_set, workers, damage):
    path = image_set.paths[13]
    with open(path, "rb") as file:
        data = file.read()
    broken = {"truncated": data[: len(data) // 2], "text": b"not an image"}
    if damage == "missing":
        image_set.paths[13] = path = path + ".gone"
    else:
        with open(path, "wb") as file:
            file.write(broken[damage])
    for run in (_eval, lambda i, w: _train(i, ShuffledSampler(i.labels, 8), workers=w)):
        with pytest.raises(ImageError) as error:
            run(image_set, workers)
        assert path in str(error.value)
        assert "\n" not in str(error.value)
        assert "Traceback" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"transform": "fancy"}, "reference, standard, v1, got fancy"),
        ({"crop_size": 0}, "got 0"),
        ({"augmentation": {"min_crop_area": 0.0}}, "got 0.0"),
        ({"augmentation": {"min_crop_area": 1.5}}, "got 1.5"),
        ({"augmentation": {"train_crop": "random"}}, "--resize_first=256"),
        ({"augmentation": {"train_crop": "random", "resize_first": (15,)}}, "15 is smaller .* 16"),
    ],
)
def test_preprocessing_rejects_bad_values(options, message):
    with pytest.raises(ValueError, match=message):
        if "augmentation" in options:
            options = {"augmentation": Augmentation(**options["augmentation"])}
        replace(PREPROCESSING, **options)


def test_a_batch_size_of_nothing_is_rejected(image_set):
    with pytest.raises(ValueError, match="batch size"):
        _eval(image_set, batch_size=0)


@pytest.fixture
def workers_of(image_set):
    """Start a loader with one worker; return its iterator and the worker's process."""

    def start():
        before = set(multiprocessing.active_children())
        loader = eval_loader(
            image_set, PREPROCESSING, batch_size=1, num_workers=1, pin_memory=False
        )
        batches = iter(loader)
        next(batches)
        (worker,) = set(multiprocessing.active_children()) - before
        return batches, worker

    return start


def test_a_killed_worker_is_an_error_where_the_next_batch_is_taken(workers_of):
    """Not before: the error of PyTorch's own handler could come in the middle of an update."""
    handler = signal.getsignal(signal.SIGCHLD)
    batches, worker = workers_of()
    assert signal.getsignal(signal.SIGCHLD) == handler
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    with pytest.raises(WorkerError, match="was killed .*lower --num_workers"):
        list(batches)


@pytest.mark.parametrize("error", [ConnectionRefusedError(111, "refused"), EOFError()])
def test_a_worker_killed_before_its_batch_is_taken_is_an_error(image_set, monkeypatch, error):
    def hand_nothing_over(loader):
        yield from ()
        raise error

    monkeypatch.setattr(loader_module, "start_workers", hand_nothing_over)
    with pytest.raises(WorkerError, match="was killed .*(refused|EOFError)"):
        _eval(image_set, workers=1)


def test_workers_leave_signals_to_stop_to_the_main_process(workers_of, image_set):
    batches, worker = workers_of()
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(worker.pid, number)
    assert len(list(batches)) == len(image_set) - 1
    worker.join()
    assert worker.exitcode == 0


def test_no_shared_memory_is_an_error_and_no_endless_wait(image_set, monkeypatch):
    def fail(_):
        raise RuntimeError("unable to allocate shared memory: No space left on device (28)\nmore")

    monkeypatch.setattr(torch.Tensor, "share_memory_", fail)
    with pytest.raises(WorkerError, match="No space left on device.*/dev/shm"):
        _eval(image_set, workers=1)
    assert len(_eval(image_set)) == 5


def test_no_descriptor_is_an_error_and_no_endless_wait(image_set, monkeypatch):
    """A batch that a worker cannot hand over would be lost in a thread of its own."""

    def lower(worker):
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 2,) * 2)

    monkeypatch.setattr(loader_module, "init_worker", lower)
    with pytest.raises(WorkerError, match="Too many open files.*ulimit -n"):
        _eval(image_set, workers=1)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM])
def test_what_the_machine_lacks_is_no_broken_image(image_set, monkeypatch, number):
    """An image is not to be skipped because there is no descriptor to read it with."""

    def fail(*_):
        raise OSError(number, os.strerror(number))

    with (
        monkeypatch.context() as patch,
        pytest.raises(WorkerError, match="cannot read images .*ulimit -n"),
    ):
        patch.setattr(os, "open", fail)
        image_set.read_image(0)
