"""Tests of reader.preprocessing: the steps that it tells are those that are taken."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.transforms_factory import transforms_imagenet_eval
from torchvision.transforms import v2

from metric_learning.reader.preprocessing import WORDS, Preprocessing
from metric_learning.reader.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    MAX_ASPECT,
    TRANSFORMS,
    resize_bicubic,
)

SIZE = 24
SHORT_SIDES = {"reference": SIZE, "standard": SIZE, "v1": 27}  # 256 / 224 of it


def follow_steps(rgb, resize, rounded, short_side=SIZE, long_side=round):
    """Do what `Preprocessing.steps` says, up to the division by 255: (S, S, 3)."""
    longest = MAX_ASPECT * min(rgb.shape[:2])
    top, left = (max(side - longest, 0) // 2 for side in rgb.shape[:2])
    rgb = rgb[top : top + longest, left : left + longest]
    short = min(rgb.shape[:2])
    height, width = (long_side(side * (short_side / short)) for side in rgb.shape[:2])
    resized = resize(rgb, (width, height))
    top, left = (rounded((side - SIZE) / 2) for side in (height, width))
    return resized[top : top + SIZE, left : left + SIZE]


def lanczos(rgb, size):
    return cv2.resize(rgb, size, interpolation=cv2.INTER_LANCZOS4)


def bicubic(rgb, size):
    return np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.BICUBIC))


def bilinear(rgb, size):
    return np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.BILINEAR))


@pytest.mark.parametrize("shape", [(37, 61), (90, 41), (24, 25), (3, 70), (11, 24)])
@pytest.mark.parametrize(
    ("transform", "resize", "rounded", "levels"),
    [("reference", lanczos, int, 0), ("standard", bicubic, round, 1)],
)
def test_the_steps_lead_to_the_input(shape, transform, resize, rounded, levels):
    rgb = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    image = TRANSFORMS[transform].eval(rgb, SIZE)
    values = (image.transpose(1, 2, 0) * IMAGENET_STD + IMAGENET_MEAN) * 255
    differences = np.abs(values - follow_steps(rgb, resize, rounded))
    # Pillow and torchvision round what overshoots, as noise does, at different moments.
    assert np.quantile(differences, 0.99 if levels else 1) <= levels + 1e-3


@pytest.mark.parametrize("shape", [(37, 61), (90, 41), (24, 25), (3, 70), (11, 24)])
def test_the_steps_of_v1_lead_to_the_input(shape):
    rgb = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    values = (
        TRANSFORMS["v1"].eval(rgb, SIZE).transpose(1, 2, 0) * IMAGENET_STD + IMAGENET_MEAN
    ) * 255
    expected = follow_steps(
        rgb, bilinear, lambda first: int(first + 0.5), 27, lambda n: int(n + 1e-9)
    )
    np.testing.assert_allclose(values, expected, atol=1e-3)


@pytest.mark.parametrize(("transform", "short_side"), SHORT_SIDES.items())
def test_the_steps_name_their_numbers(transform, short_side):
    steps = Preprocessing(transform, SIZE, (0.5, 0.4, 0.3), (0.2, 0.1, 0.3)).steps()
    text = " ".join(steps)
    assert f"short side of {short_side} pixels" in text and "16 times" in text
    assert "subtract [0.5, 0.4, 0.3], divide by [0.2, 0.1, 0.3]" in text
    assert all(words in text for words in WORDS[transform])


@pytest.mark.parametrize("transform", ["reference", "standard"])
def test_the_steps_of_another_height_and_width_lead_to_the_input(transform):
    options = Preprocessing(transform, (24, 12), (0.5,) * 3, (0.5,) * 3, resize_ratio=1.5)
    text = " ".join(options.steps())
    assert "the least size in proportion that covers 36 x 18 pixels (height x width)" in text
    assert "crop the central 24 x 12 pixels" in text and "(batch, 3, 24, 12)" in text

    rgb = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    resized = TRANSFORMS[transform].resize(rgb, 36, 50)
    if transform == "standard":
        resized = resize_bicubic(rgb, 36, 50)
    np.testing.assert_array_equal(options.test_crop(rgb), resized[6:30, 19:31])


def test_every_transform_has_words():
    assert set(WORDS) == set(TRANSFORMS) == set(SHORT_SIDES)


def by_torchvision(rgb, size):
    image = torch.from_numpy(rgb).permute(2, 0, 1)
    resized = v2.functional.resize(image, size[::-1], v2.InterpolationMode.BICUBIC, antialias=True)
    return resized.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("shape", [(37, 61), (90, 41), (24, 25), (2, 70), (11, 24)])
@pytest.mark.parametrize("crop_size", [24, (24, 12)])
@pytest.mark.parametrize("ratio", [None, 1.0, 1.143, 1.5])
@pytest.mark.parametrize(
    ("transform", "resize", "rounded", "own_ratio"),
    [
        ("reference", lanczos, int, 1),
        ("standard", by_torchvision, round, 1),
        ("v1", bilinear, lambda first: int(first + 0.5), 8 / 7),
    ],
)
def test_a_squashed_image_is_seen_whole(
    shape, crop_size, ratio, transform, resize, rounded, own_ratio
):
    rgb = noise(*shape)
    shown = {"resize_ratio": ratio, "test_resize": "squash"}
    options = Preprocessing(transform, crop_size, (0.5,) * 3, (0.5,) * 3, **shown)
    height, width = (24, 24) if crop_size == 24 else crop_size
    rows, columns = (round((ratio or own_ratio) * side) for side in (height, width))
    top, left = rounded((rows - height) / 2), rounded((columns - width) / 2)
    expected = resize(rgb, (columns, rows))[top : top + height, left : left + width]
    np.testing.assert_array_equal(options.test_crop(rgb), expected)


def test_a_squashed_image_is_that_of_pillow_and_timm():
    rgb = np.asarray(Image.fromarray(noise(9, 14)).resize((90, 60), Image.Resampling.BICUBIC))
    options = Preprocessing("standard", 56, (0.5,) * 3, (0.5,) * 3, resize_ratio=8 / 7)
    crop = replace(options, test_resize="squash").test_crop(rgb).astype(int)
    assert np.abs(crop - bicubic(rgb, (64, 64))[4:60, 4:60]).max() <= 1

    way = {"crop_pct": 0.875, "crop_mode": "squash", "interpolation": "bicubic", "normalize": False}
    peer = transforms_imagenet_eval(56, **way)(Image.fromarray(rgb)).permute(1, 2, 0).numpy()
    assert np.abs(crop - peer).max() <= 1
    assert np.abs(crop - options.test_crop(rgb)).max() > 50


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("transform", WORDS)
def test_the_steps_say_that_images_are_squashed(transform):
    options = Preprocessing(transform, (24, 12), (0.5,) * 3, (0.5,) * 3, resize_ratio=1.5)
    text = " ".join(replace(options, test_resize="squash").steps())
    assert "resize height and width to 36 x 18 pixels, whatever the proportions" in text
    assert WORDS[transform][1] in text and "crop the central 24 x 12 pixels" in text
    assert "times the other" not in text and "in proportion" not in text


def test_an_unknown_way_to_resize_is_refused():
    with pytest.raises(ValueError, match="of short_side, squash, got stretch: change --test_res"):
        Preprocessing("standard", SIZE, (0.5,) * 3, (0.5,) * 3, test_resize="stretch")
