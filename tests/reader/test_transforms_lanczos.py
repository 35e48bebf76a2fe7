"""The Lanczos resizing against OpenCV's, to the bit."""

import subprocess
import sys

import cv2
import numpy as np
import pytest

from metric_learning.reader import transforms
from metric_learning.reader.transforms import resize_lanczos


def opencv(rgb, height, width):
    return cv2.resize(rgb, (width, height), interpolation=cv2.INTER_LANCZOS4)


def photo(height, width, seed=0):
    """Noise, below it edges between black and white, which the weights overshoot."""
    rgb = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    rgb[height // 2 :] = (rgb[height // 2 :] > 127) * 255
    return rgb


@pytest.mark.parametrize("new_size", [1, 32, 64, 112, 224, 227])
def test_every_size_of_image_meets_opencv(new_size):
    for size in range(1, 520, 1 if new_size == 224 else 7):
        rgb = photo(10, size)
        expected = opencv(rgb, 10, new_size)
        np.testing.assert_array_equal(resize_lanczos(rgb, 10, new_size), expected)
        upright = np.ascontiguousarray(rgb.transpose(1, 0, 2))
        expected = opencv(upright, new_size, 10)
        np.testing.assert_array_equal(resize_lanczos(upright, new_size, 10), expected)


@pytest.mark.parametrize("seed", range(20))
def test_both_axes_meet_opencv(seed):
    sizes = np.random.default_rng(seed).integers(1, 500, 4).tolist()
    rgb = photo(sizes[0], sizes[1], seed)
    expected = opencv(rgb, sizes[2], sizes[3])
    np.testing.assert_array_equal(resize_lanczos(rgb, sizes[2], sizes[3]), expected)


def test_part_of_an_image_is_read_in_place():
    rgb = photo(60, 80)
    part = rgb[7:50, 11:70]
    part.flags.writeable = False
    np.testing.assert_array_equal(resize_lanczos(part, 32, 32), opencv(part, 32, 32))
    np.testing.assert_array_equal(rgb, photo(60, 80))


def test_the_strongest_contrast_does_not_overflow():
    """255 wherever the product of the weights is positive is the largest sum there is."""
    for sign in (0, 1):
        rgb = np.zeros((8, 8, 3), np.uint8)
        for row in range(8):
            rgb[row, (row + sign) % 2 :: 2] = 255
        np.testing.assert_array_equal(resize_lanczos(rgb, 99, 99), opencv(rgb, 99, 99))


def test_opencv_takes_over_where_nothing_can_be_compiled(monkeypatch):
    monkeypatch.setattr(transforms, "_compiled", lambda: None)
    rgb = photo(20, 30)
    np.testing.assert_array_equal(resize_lanczos(rgb, 16, 16), opencv(rgb, 16, 16))
    code = (
        "import sys, warnings; sys.modules['numba'] = None; warnings.simplefilter('error'); "
        "import numpy; from metric_learning.reader.transforms import resize_lanczos; "
        "resize_lanczos(numpy.zeros((8, 8, 3), numpy.uint8), 4, 4)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "images are resized by OpenCV, which takes longer" in done.stderr
