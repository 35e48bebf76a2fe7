"""Transforms: the reference's fixtures, random crops, and images of any size."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional

from metric_learning.reader.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    TRANSFORMS,
    random_box,
    random_crop,
    reduce_image,
    reference_eval,
    resized_shape,
    v1_covered,
    within_aspect,
)

FIXTURES = Path(__file__).parent.parent / "fixtures"


def _photo(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, size=(height, width, 3), dtype=np.uint8)


def _train(name, rgb, crop_size, seed=0, **options):
    """A training crop of the image, drawn with a generator of that seed."""
    crop = random_crop(*rgb.shape[:2], np.random.default_rng(seed), **options)
    return TRANSFORMS[name].train(rgb, crop, crop_size)


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("preprocess_*.npz")), ids=lambda p: p.stem)
def test_eval_meets_the_reference(path):
    with np.load(path) as fixture:
        image = reference_eval(fixture["rgb"], int(fixture["crop_size"]))
        np.testing.assert_allclose(image, fixture["image"], atol=1e-5)


def test_eval_meets_all_reference_fixtures(shared):
    paths = sorted((shared / "reference").glob("preprocess_*.npz"))
    assert paths
    for path in paths:
        with np.load(path) as fixture:
            image = reference_eval(fixture["rgb"], int(fixture["crop_size"]))
            np.testing.assert_allclose(image, fixture["image"], atol=1e-5)


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (1, 7), (5000, 1), (20, 3000), (9, 6), (40, 33), (50, 70)]
)
def test_any_image_size_works(name, height, width):
    rgb = _photo(height, width)
    image = TRANSFORMS[name].eval(rgb, 32)
    assert image.shape == (3, 32, 32)
    assert image.dtype == np.float32
    assert image.flags["C_CONTIGUOUS"]
    assert np.isfinite(image).all()
    for crop in (_train(name, rgb, 32), TRANSFORMS[name].test(rgb, 32)):
        assert crop.shape == (32, 32, 3)
        assert crop.dtype == np.uint8
    assert _train(name, rgb, 32).flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(rgb, _photo(height, width))


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("shape", [(1, 1), (5000, 1), (20, 3000), (80, 40), (64, 32), (33, 40)])
@pytest.mark.parametrize("crop_size", [(32, 16), (12, 50), (20, 20)])
def test_the_crop_is_covered_in_proportion(name, shape, crop_size):
    """A test crop is the centre of the image at the least size that covers it, by both sides."""
    rgb = np.broadcast_to(np.arange(shape[0], dtype=np.uint8)[:, None, None], (*shape, 3))
    assert TRANSFORMS[name].eval(rgb, crop_size).shape == (3, *crop_size)
    assert _train(name, rgb, crop_size).shape == (*crop_size, 3)

    covered = v1_covered(crop_size) if name == "v1" else crop_size
    height, width = resized_shape(*within_aspect(rgb).shape[:2], covered)
    assert height >= covered[0] and width >= covered[1]
    assert height == covered[0] or width == covered[1]
    crop = TRANSFORMS[name].test(rgb, crop_size, covered)
    np.testing.assert_array_equal(crop, TRANSFORMS[name].test(rgb, crop_size))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_constant_colour_is_normalised(name):
    colour = np.array([10, 128, 250], dtype=np.uint8)
    rgb = np.broadcast_to(colour, (30, 50, 3))
    mean, std = (0.5, 0.4, 0.3), (0.5, 0.25, 0.125)
    for options in ({"mean": IMAGENET_MEAN, "std": IMAGENET_STD}, {"mean": mean, "std": std}):
        expected = (colour / 255 - options["mean"]) / options["std"]
        image = TRANSFORMS[name].eval(rgb, 16, **options)
        np.testing.assert_allclose(image, np.broadcast_to(expected, (16, 16, 3)).T, atol=1e-5)
    np.testing.assert_array_equal(_train(name, rgb, 16), np.broadcast_to(colour, (16, 16, 3)))


@pytest.mark.parametrize("name", ["reference", "standard"])
def test_eval_at_the_image_size_only_normalises(name):
    rgb = _photo(24, 24)
    image = TRANSFORMS[name].eval(rgb, 24)
    expected = ((rgb / 255 - IMAGENET_MEAN) / IMAGENET_STD).transpose(2, 0, 1)
    np.testing.assert_allclose(image, expected, atol=1e-5)


def test_all_but_the_reference_s_transform_are_antialiased():
    rgb = np.repeat(np.tile(np.array([[0], [255]], dtype=np.uint8), (128, 256))[:, :, None], 3, 2)
    reference, *others = (_train(name, rgb, 20, 1, min_crop_area=0.9) for name in TRANSFORMS)
    for name, other in zip(("standard", "v1"), others, strict=True):
        assert reference_eval(rgb, 20).std() > 10 * TRANSFORMS[name].eval(rgb, 20).std()
        assert reference.std() > 2 * other.std()


@pytest.mark.parametrize(
    ("size", "resized"),
    [
        ((300, 400), (256, 341)),
        ((401, 300), (342, 256)),
        ((256, 256), (256, 256)),
        ((256, 381), (256, 381)),
        ((60, 50), (307, 256)),
    ],
)
def test_v1_takes_the_centre_of_what_pillow_resizes(size, resized):
    rgb = _photo(*size)
    height, width = resized
    image = Image.fromarray(rgb).resize((width, height), Image.Resampling.BILINEAR)
    left, top = (int((side - 224) / 2 + 0.5) for side in (width, height))
    expected = np.asarray(image.crop((left, top, left + 224, top + 224)))
    np.testing.assert_array_equal(TRANSFORMS["v1"].test(rgb, 224), expected)


def test_v1_has_other_sizes_in_proportion():
    crop = TRANSFORMS["v1"].test(_photo(300, 300), 112)
    expected = np.asarray(Image.fromarray(_photo(300, 300)).resize((128, 128), 2))[8:120, 8:120]
    np.testing.assert_array_equal(crop, expected)


@pytest.mark.parametrize("size", [(60, 80), (230, 200), (500, 31)])
@pytest.mark.parametrize("seed", range(4))
def test_training_crops_equal_plain_opencv_and_torchvision(size, seed):
    """The oracles are the libraries' own calls on a box that was drawn as ever."""
    rgb = _photo(*size)
    rng = np.random.default_rng(seed)
    top, left, height, width = random_box(*size, rng, 0.08)
    mirrored = rng.random() < 0.5
    box = rgb[top : top + height, left : left + width]
    reference = cv2.resize(box, (48, 48), interpolation=cv2.INTER_LANCZOS4)
    standard = functional.resized_crop(
        torch.from_numpy(rgb).permute(2, 0, 1),
        *(top, left, height, width),
        size=[48, 48],
        antialias=True,
    )
    v1 = Image.fromarray(box).resize((48, 48), Image.Resampling.BILINEAR)
    expected_crops = {"reference": reference, "standard": standard.permute(1, 2, 0), "v1": v1}
    for name, expected in expected_crops.items():
        expected = np.asarray(expected)[:, ::-1] if mirrored else np.asarray(expected)
        np.testing.assert_array_equal(_train(name, rgb, 48, seed), expected)


def test_draws_come_from_the_generator_alone():
    crops = [random_crop(60, 80, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert crops[0] == crops[1] != crops[2]


def test_every_other_crop_is_mirrored():
    crops = [random_crop(60, 80, np.random.default_rng(seed)) for seed in range(60)]
    assert 15 < sum(crop.mirrored for crop in crops) < 45
    plain = [
        random_crop(60, 80, np.random.default_rng(seed), horizontal_flip=False)
        for seed in range(60)
    ]
    assert plain == [crop._replace(mirrored=False) for crop in crops]


def test_a_reduced_image_is_antialiased_and_a_small_one_is_itself():
    stripes = np.repeat(np.tile(np.array([[0], [255]], np.uint8), (64, 128))[:, :, None], 3, 2)
    reduced = reduce_image(stripes, (50, 50))
    assert reduced.shape == (50, 50, 3) and reduced.flags["C_CONTIGUOUS"]
    assert abs(int(reduced[5:-5].max()) - int(reduced[5:-5].min())) < 60
    assert reduce_image(stripes, stripes.shape[:2]) is stripes


@pytest.mark.parametrize(("height", "width"), [(300, 400), (400, 300), (1000, 40), (3, 2), (1, 1)])
def test_random_box_lies_inside(height, width):
    rng = np.random.default_rng(0)
    for _ in range(300):
        top, left, box_height, box_width = random_box(height, width, rng, 0.08)
        assert 0 <= top <= top + box_height <= height
        assert 0 <= left <= left + box_width <= width
        assert box_height >= 1
        assert box_width >= 1


@pytest.mark.parametrize("min_crop_area", [0.08, 0.5])
def test_random_box_has_the_stated_areas_and_ratios(min_crop_area):
    rng = np.random.default_rng(0)
    boxes = np.array([random_box(600, 800, rng, min_crop_area) for _ in range(2000)])
    heights, widths = boxes[:, 2], boxes[:, 3]
    areas, ratios = heights * widths / (600 * 800), widths / heights
    assert min_crop_area - 0.01 < areas.min() < min_crop_area + 0.03
    assert 0.97 < areas.max() <= 1
    assert 0.74 < ratios.min() < 0.76
    assert 1.32 < ratios.max() < 1.35
    assert boxes[:, :2].min() == 0
    assert (boxes[:, 0] + heights).max() == 600
    assert (boxes[:, 1] + widths).max() == 800
