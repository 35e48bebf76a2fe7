"""Transforms: the reference's fixtures, random boxes, and images of any size."""

from pathlib import Path

import numpy as np
import pytest

from reader.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    TRANSFORMS,
    random_box,
    reference_eval,
    reference_train,
    standard_eval,
    standard_train,
)

FIXTURES = Path(__file__).parent.parent / "fixtures"


def _photo(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, size=(height, width, 3), dtype=np.uint8)


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
    train, evaluate = TRANSFORMS[name]
    for image in (train(rgb, 32, np.random.default_rng(0)), evaluate(rgb, 32)):
        assert image.shape == (3, 32, 32)
        assert image.dtype == np.float32
        assert image.flags["C_CONTIGUOUS"]
        assert np.isfinite(image).all()
    np.testing.assert_array_equal(rgb, _photo(height, width))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_constant_colour_is_normalised(name):
    colour = np.array([10, 128, 250], dtype=np.uint8)
    rgb = np.broadcast_to(colour, (30, 50, 3))
    mean, std = (0.5, 0.4, 0.3), (0.5, 0.25, 0.125)
    train, evaluate = TRANSFORMS[name]
    for options in ({"mean": IMAGENET_MEAN, "std": IMAGENET_STD}, {"mean": mean, "std": std}):
        expected = (colour / 255 - options["mean"]) / options["std"]
        for image in (
            evaluate(rgb, 16, **options),
            train(rgb, 16, np.random.default_rng(0), **options),
        ):
            np.testing.assert_allclose(image, np.broadcast_to(expected, (16, 16, 3)).T, atol=1e-5)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_eval_at_the_image_size_only_normalises(name):
    rgb = _photo(24, 24)
    image = TRANSFORMS[name][1](rgb, 24)
    expected = ((rgb / 255 - IMAGENET_MEAN) / IMAGENET_STD).transpose(2, 0, 1)
    np.testing.assert_allclose(image, expected, atol=1e-5)


def test_only_the_standard_transform_is_antialiased():
    rgb = np.repeat(np.tile(np.array([[0], [255]], dtype=np.uint8), (128, 256))[:, :, None], 3, 2)
    assert reference_eval(rgb, 20).std() > 10 * standard_eval(rgb, 20).std()
    draws = [np.random.default_rng(1) for _ in range(2)]
    reference = reference_train(rgb, 20, draws[0], min_crop_area=0.9)
    standard = standard_train(rgb, 20, draws[1], min_crop_area=0.9)
    assert reference.std() > 2 * standard.std()


@pytest.mark.parametrize("name", TRANSFORMS)
def test_train_draws_come_from_the_generator_alone(name):
    rgb, train = _photo(60, 80), TRANSFORMS[name][0]
    images = [train(rgb, 16, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(images[0], images[1])
    assert not np.array_equal(images[0], images[2])


@pytest.mark.parametrize("name", TRANSFORMS)
def test_flip_mirrors_every_other_image(name):
    rgb, train = _photo(60, 80), TRANSFORMS[name][0]
    num_flipped = 0
    for seed in range(60):
        plain = train(rgb, 8, np.random.default_rng(seed), horizontal_flip=False)
        image = train(rgb, 8, np.random.default_rng(seed))
        flipped = np.array_equal(image, plain[:, :, ::-1])
        assert flipped or np.array_equal(image, plain)
        num_flipped += flipped
    assert 15 < num_flipped < 45


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
