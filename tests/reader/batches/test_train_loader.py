"""Training batches: inputs as they ever were, work on the device, broken images replaced."""

import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data._utils.pin_memory import pin_memory
from torchvision.transforms.v2 import functional

from metric_learning.reader.batches.loader import (
    Batch,
    Reading,
    check_broken,
    normalise,
    to_inputs,
    train_loader,
)
from metric_learning.reader.batches.on_device import DeviceImages
from metric_learning.reader.batches.samplers import ClassBlockSampler, ShuffledSampler
from metric_learning.reader.preprocessing import Preprocessing
from metric_learning.reader.sets.image_set import ImageError, ImageSet
from metric_learning.reader.transforms import IMAGENET_MEAN, IMAGENET_STD

CPU = torch.device("cpu")
PREPROCESSING = Preprocessing("standard", 24, IMAGENET_MEAN, IMAGENET_STD)
SKIP = Reading(on_bad_image="skip")
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.fixture
def image_set(tmp_path):
    """Six classes of four images, JPEG and PNG, colour and grey, of many sizes."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(6), 4)
    paths = []
    for i in range(len(labels)):
        size = rng.integers(12, 60, size=2)
        coarse = rng.integers(0, 256, (4, 4, 3), np.uint8)
        image = Image.fromarray(cv2.resize(coarse, (int(size[0]), int(size[1]))))
        path = tmp_path / f"{i:02d}.{'png' if i % 3 == 0 else 'jpg'}"
        (image.convert("L") if i % 4 == 0 else image).save(path)
        paths.append(str(path))
    everything = np.ones(len(labels), dtype=bool)
    names = {label: f"class{label}" for label in range(6)}
    return ImageSet("test", "train", paths, labels, names, everything, everything)


def load(image_set, sampler, reading=None, start=0, end=4, workers=0, preprocessing=PREPROCESSING):
    loader = train_loader(
        image_set,
        sampler,
        preprocessing,
        start_step=start,
        end_step=end,
        seed=3,
        num_workers=workers,
        pin_memory=False,
        reading=reading,
    )
    return list(loader)


def inputs_of(batches, preprocessing=PREPROCESSING, device=CPU):
    return [to_inputs(batch, preprocessing, device).cpu() for batch in batches]


def former_input(rgb, transform, draw, size=24, seed=3):
    """The input that workers made before batches were uint8, written out."""
    rng = np.random.default_rng([4, seed, draw])
    height, width = rgb.shape[:2]
    ratio = rng.uniform(3 / 4, 4 / 3)
    largest = min(1.0, width / height / ratio, height / width * ratio)
    area = rng.uniform(min(0.08, largest), largest) * height * width
    box_width = min(max(int(math.sqrt(area * ratio)), 1), width)
    box_height = min(max(int(math.sqrt(area / ratio)), 1), height)
    top = int(rng.integers(height - box_height + 1))
    left = int(rng.integers(width - box_width + 1))
    if transform == "reference":
        box = rgb[top : top + box_height, left : left + box_width]
        crop = cv2.resize(box, (size, size), interpolation=cv2.INTER_LANCZOS4).transpose(2, 0, 1)
    else:
        image = torch.from_numpy(np.array(rgb)).permute(2, 0, 1)
        box = top, left, box_height, box_width
        crop = functional.resized_crop(image, *box, size=[size, size], antialias=True).numpy()
    if rng.random() < 0.5:
        crop = crop[:, :, ::-1]
    scale = 1 / (255 * np.asarray(IMAGENET_STD))
    shift = np.asarray(IMAGENET_MEAN) / np.asarray(IMAGENET_STD)
    image = np.array(crop, dtype=np.float32, order="C")
    image *= scale.astype(np.float32)[:, None, None]
    image -= shift.astype(np.float32)[:, None, None]
    return image


@pytest.mark.parametrize(
    ("transform", "hand_over"),
    [("reference", "crops"), ("standard", "crops"), ("standard", "images")],
)
def test_inputs_are_those_of_before_to_the_bit(image_set, transform, hand_over):
    preprocessing = replace(PREPROCESSING, transform=transform)
    sampler = ShuffledSampler(image_set.labels, 8)
    batches = load(image_set, sampler, Reading(hand_over), preprocessing=preprocessing)
    for step, images in enumerate(inputs_of(batches, preprocessing)):
        assert images.is_contiguous(memory_format=torch.channels_last)
        for position, i in enumerate(sampler.batch(step)):
            expected = former_input(image_set.read_image(i), transform, 8 * step + position)
            np.testing.assert_array_equal(images[position], expected)


def test_batches_are_bytes_until_they_are_on_the_device(image_set):
    [batch] = load(image_set, ShuffledSampler(image_set.labels, 8), end=1)
    assert batch.images.dtype == torch.uint8 and batch.images.shape == (8, 3, 24, 24)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)


def test_normalise_equals_the_formula_for_all_values():
    values = torch.arange(256, dtype=torch.uint8).repeat(3, 1).view(1, 3, 16, 16)
    mean, std = (0.5, 0.4, 0.3), (0.5, 0.25, 0.125)
    images = normalise(values, mean, std)
    expected = (values.double() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(
        3, 1, 1
    )
    torch.testing.assert_close(images.double(), expected, atol=1e-6, rtol=0)


def test_files_are_decoded_where_the_batch_goes(image_set):
    sampler = ShuffledSampler(image_set.labels, 24)
    expected = inputs_of(load(image_set, sampler, end=2))
    batches = load(image_set, sampler, Reading("files"), end=2)
    assert [isinstance(batch.images, DeviceImages) for batch in batches] == [True, True]
    assert [len(group.files) for group in batches[0].images.groups] == [16]
    for images, wanted in zip(inputs_of(batches), expected, strict=True):
        np.testing.assert_array_equal(images, wanted)


@pytest.mark.parametrize("hand_over", ["crops", "images"])
def test_pinned_batches_hold_the_same(image_set, monkeypatch, hand_over):
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)  # without a GPU
    batches = load(image_set, ShuffledSampler(image_set.labels, 8), Reading(hand_over), end=1)
    pinned = [pin_memory(batch) for batch in batches]
    assert isinstance(pinned[0], Batch) and pinned[0].images is not batches[0].images
    assert torch.equal(*inputs_of(batches), *inputs_of(pinned))


def keep_head(path):
    """Leave a JPEG its head, which says its size, and its end."""
    with open(path, "rb") as file:
        data = file.read()
    with open(path, "wb") as file:
        file.write(data[: data.index(b"\xff\xda")] + b"\xff\xd9")


def break_codes(path):
    """Give a JPEG a table of more codes than can be."""
    with open(path, "rb") as file:
        data = bytearray(file.read())
    start = data.index(b"\xff\xc4") + 5
    data[start : start + 16] = b"\xff" * 16
    with open(path, "wb") as file:
        file.write(data)


def test_a_jpeg_without_image_data_is_left_to_no_gpu(image_set):
    """NVIDIA's decoder makes an image of it, without an error."""
    keep_head(image_set.paths[1])
    with pytest.raises(ImageError, match=image_set.paths[1]):
        load(image_set, ShuffledSampler(image_set.labels, 24), Reading("files"), end=1)


def test_a_jpeg_broken_inside_is_named_when_it_is_decoded(image_set):
    break_codes(image_set.paths[1])
    batches = load(image_set, ShuffledSampler(image_set.labels, 24), Reading("files"), end=1)
    with pytest.raises(ImageError, match=image_set.paths[1]):
        inputs_of(batches)


@CUDA
@pytest.mark.parametrize(("hand_over", "levels"), [("crops", 0), ("images", 0), ("files", 6)])
def test_a_gpu_makes_the_same_inputs(image_set, hand_over, levels):
    """NVIDIA's decoder rounds otherwise, and interpolates colours otherwise at their edges."""
    sampler = ShuffledSampler(image_set.labels, 24)
    [expected] = inputs_of(load(image_set, sampler, end=1))
    [batch] = load(image_set, sampler, Reading(hand_over), end=1)
    [images] = inputs_of([batch], device=torch.device("cuda"))
    differences = (images - expected).abs() * 255 * torch.tensor(IMAGENET_STD).view(3, 1, 1)
    assert differences.mean() <= levels / 2 + 1e-3
    assert hand_over == "files" or differences.max() <= levels + 1e-3


@CUDA
def test_a_gpu_run_names_a_broken_file(image_set):
    break_codes(image_set.paths[1])
    batches = load(image_set, ShuffledSampler(image_set.labels, 24), Reading("files"), end=1)
    with pytest.raises(ImageError, match=image_set.paths[1]):
        inputs_of(batches, device=torch.device("cuda"))


def break_files(image_set, *images):
    for i in images:
        with open(image_set.paths[i], "wb") as file:
            file.write(b"no image")


def test_a_broken_image_stops_by_default(image_set):
    break_files(image_set, 5)
    with pytest.raises(ImageError, match=image_set.paths[5]):
        load(image_set, ShuffledSampler(image_set.labels, 24), end=1)


@pytest.mark.parametrize("hand_over", ["crops", "images", "files"])
def test_a_broken_image_is_replaced_within_its_class(image_set, hand_over):
    break_files(image_set, 5, 6)
    sampler = ShuffledSampler(image_set.labels, 24)
    reading = replace(SKIP, hand_over=hand_over)
    batches = load(image_set, sampler, reading, end=3)
    images = inputs_of(batches)
    for step, batch in enumerate(batches):
        order = sampler.batch(step)
        np.testing.assert_array_equal(batch.labels, image_set.labels[order])
        assert {image_set.paths[5], image_set.paths[6]} == set(batch.broken)
        assert all(path in error for path, error in batch.broken.items())
        for i in (5, 6):
            position = int(np.flatnonzero(order == i)[0])
            drawn = images[step][position]
            possible = [
                former_input(image_set.read_image(other), "standard", 24 * step + position)
                for other in (4, 7)
            ]
            assert any(np.array_equal(drawn, image) for image in possible)


def test_replacements_depend_on_neither_workers_nor_resume_nor_ranks(image_set):
    break_files(image_set, 5, 6, 17)
    whole = inputs_of(load(image_set, ClassBlockSampler(image_set.labels, 8, 2), SKIP, end=6))
    with_workers = inputs_of(
        load(image_set, ClassBlockSampler(image_set.labels, 8, 2), SKIP, end=6, workers=2)
    )
    resumed = inputs_of(
        load(image_set, ClassBlockSampler(image_set.labels, 8, 2), SKIP, start=3, end=6)
    )
    shares = [
        inputs_of(
            load(
                image_set,
                ClassBlockSampler(image_set.labels, 8, 2, rank=r, world_size=2),
                SKIP,
                end=6,
            )
        )
        for r in range(2)
    ]
    assert torch.equal(torch.stack(whole), torch.stack(with_workers))
    assert torch.equal(torch.stack(whole[3:]), torch.stack(resumed))
    assert torch.equal(
        torch.stack(whole), torch.cat([torch.stack(share) for share in shares], dim=1)
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_a_class_without_a_readable_image_is_named(image_set, workers):
    break_files(image_set, 4, 5, 6, 7)
    with pytest.raises(
        ImageError, match="class1 has no readable image among its 4: .*not an image"
    ):
        load(image_set, ShuffledSampler(image_set.labels, 24), SKIP, end=1, workers=workers)


def test_one_broken_image_is_tolerated_and_one_in_twenty():
    check_broken(1, 2)
    check_broken(5, 100)
    for num_broken, num_images in ((2, 39), (6, 100)):
        with pytest.raises(ImageError, match=f"{num_broken} broken images among {num_images}"):
            check_broken(num_broken, num_images)
