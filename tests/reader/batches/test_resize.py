"""Crops of many sizes, resized at once on a device: to the bit as one by one, in few operations."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from pretended_device import OnDevice, counted_waits
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.speed.reader import image_set_of
from metric_learning.reader.batches import on_device
from metric_learning.reader.batches.on_device import grouped, pack, read_file
from metric_learning.reader.batches.resize import (
    FLOAT32_BITS,
    STRIP,
    cut_strips,
    cut_strips_on_device,
    line_sums,
    num_values,
)
from metric_learning.reader.transforms import Crop, random_crop, standard_train

CPU = torch.device("cpu")
# Heights and widths of crops: of one pixel, about a strip, long and thin, reduced little or much.
SIZES = (
    *((1, 1), (1, 90), (90, 1), (2, 3), (STRIP - 1, 5), (STRIP, STRIP), (STRIP + 1, 7), (129, 64)),
    *((31, 33), (224, 224), (200, 317), (5, 900), (1000, 3), (640, 480), (1300, 1700)),
)


class Operations(TorchDispatchMode):
    """Counts what is handed to a device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def photo(height, width, seed):
    """Noise, black and white where the seed is odd: no sum is far from where it is rounded."""
    rgb = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return (rgb > 127).astype(np.uint8) * 255 if seed % 2 else rgb


def crops_of(sizes, seed=0):
    """Photographs with crops of these sizes somewhere in them, every other mirrored."""
    rng = np.random.default_rng(seed)
    samples = []
    for number, (height, width) in enumerate(sizes):
        top, left = rng.integers(0, 9, 2).tolist()
        rgb = photo(top + height + number % 3, left + width + number % 4, number // 2)
        samples.append((rgb, Crop(top, left, height, width, number % 2 == 1)))
    return samples


def drawn(count, height=50, width=40):
    rng = np.random.default_rng(0)
    return [(photo(height, width, n), random_crop(height, width, rng)) for n in range(count)]


def packed(samples, crop_size):
    return pack([(cut_strips(rgb, crop), crop) for rgb, crop in samples], crop_size)


def one_by_one(samples, crop_size):
    """What workers make of the same crops, (B, 3, S, T)."""
    images = np.stack([standard_train(*sample, crop_size) for sample in samples])
    return images.transpose(0, 3, 1, 2)


@pytest.mark.parametrize("crop_size", [1, 2, 15, 32, 64, 224, (32, 15), (64, 129)])
def test_crops_of_all_sizes_equal_those_of_the_workers(crop_size):
    samples = crops_of([size for size in SIZES for _ in range(2)])
    images = packed(samples, crop_size).crop(CPU)
    assert images.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_array_equal(images, one_by_one(samples, crop_size))


def test_every_size_of_a_line_is_resized_as_pytorch_does():
    samples = crops_of([(size, 400 - size) for size in range(1, 400)])
    for crop_size in (7, 100):
        images = packed(samples, crop_size).crop(CPU)
        np.testing.assert_array_equal(images, one_by_one(samples, crop_size))


@pytest.mark.parametrize("new_size", [32, 224])
def test_sums_are_exact_and_within_a_byte(new_size):
    """A float32 holds whole numbers up to 2^24; units are those of the weights."""
    for size in range(1, 5000, 7):
        sums, bits = line_sums(size, new_size)
        units = sums.weights.astype(np.float64) * 2**bits
        assert (units % 1 == 0).all()
        starts = np.cumsum(sums.counts) - sums.counts
        largest = (255 * np.add.reduceat(units, starts)).max() + 2**bits / 2
        assert largest < 256 * 2**bits and (bits > FLOAT32_BITS or largest <= 2**24)
        assert np.add.reduceat(units, starts).min() * 255 + 2**bits / 2 >= 255 * 2**bits


def test_only_strong_reductions_need_double_precision():
    for height, dtype in ((30, torch.float32), (120, torch.float32), (200, torch.float64)):
        [group] = packed(crops_of([(30, 20), (height, 40)]), 32).groups
        assert group.dtype == dtype


def test_the_number_of_operations_is_that_of_one_image():
    counts = []
    for count in (1, 8, 64):
        images = packed(drawn(count), 24)
        with Operations() as operations:
            images.crop(CPU)
        counts.append(operations.count)
    assert len(set(counts)) == 1 and counts[0] < 50


def test_nothing_waits_for_the_device():
    samples = drawn(9)
    images = packed(samples, 24)
    on_it = replace(images, data=OnDevice(images.data))
    with counted_waits() as waits:
        crops = on_it.crop(CPU)
    assert isinstance(crops, OnDevice) and waits == []
    np.testing.assert_array_equal(crops.inner, one_by_one(samples, 24))


def test_large_crops_are_resized_in_groups_of_a_bounded_size(monkeypatch):
    samples = crops_of([(40, 50), (300, 300), (20, 20), (30, 30), (700, 500), (10, 10)])
    whole = packed(samples, 24)
    assert len(whole.groups) == 1
    most = 290_000
    monkeypatch.setattr(on_device, "MOST_VALUES", most)
    parts = list(grouped(samples, 24))
    assert [len(part) for part in parts] == [1, 1, 2, 1, 1]
    sums = [sum(num_values(crop, 24) for _, crop in part) for part in parts]
    assert all(total <= most or len(part) == 1 for total, part in zip(sums, parts, strict=True))
    images = packed(samples, 24)
    assert len(images.groups) == 5
    assert torch.equal(images.crop(CPU), whole.crop(CPU))


def test_a_device_cuts_strips_as_the_workers_do():
    for rgb, crop in crops_of(SIZES):
        image = torch.from_numpy(rgb).permute(2, 0, 1)
        np.testing.assert_array_equal(cut_strips_on_device(image, crop), cut_strips(rgb, crop))


def test_a_batch_may_be_files_alone(tmp_path):
    paths = [str(tmp_path / f"{number}.jpg") for number in range(5)]
    for number, path in enumerate(paths):
        Image.fromarray(photo(40 + number, 90 - number, number)).save(path)
    image_set = image_set_of(paths)
    rng = np.random.default_rng(0)
    files = [read_file(image_set, number) for number in range(5)]
    crops = [random_crop(*file.shape, rng) for file in files]
    images = pack(list(zip(files, crops, strict=True)), 24)
    assert [len(group.files) for group in images.groups] == [5]
    samples = [(image_set.read_image(n), crop) for n, crop in enumerate(crops)]
    np.testing.assert_array_equal(images.crop(CPU), one_by_one(samples, 24))
