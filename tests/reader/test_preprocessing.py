"""Tests of reader.preprocessing: the steps that it tells are those that are taken."""

import cv2
import numpy as np
import pytest
from PIL import Image

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
