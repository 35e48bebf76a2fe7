"""What is done to training crops, held against torchvision's transforms of the same draws."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import v2

from metric_learning.reader.augment import (
    Augmentation,
    erase_rectangle,
    jitter_colours,
    operations_of,
    rand_augment,
)
from metric_learning.reader.batches.loader import train_loader
from metric_learning.reader.batches.samplers import ClassBlockSampler
from metric_learning.reader.preprocessing import Preprocessing
from metric_learning.reader.sets.image_set import ImageSet
from metric_learning.reader.transforms import IMAGENET_MEAN, IMAGENET_STD

PREPROCESSING = Preprocessing("standard", 24, IMAGENET_MEAN, IMAGENET_STD)
EVERYTHING = Augmentation(
    crop_aspect=(0.5, 1.0),
    resize_first=(30,),
    color_jitter=(0.4, 0.3, 0.2, 0.1),
    rand_augment=(2, 9),
    random_erasing=0.5,
)


def picture(height=32, width=32, seed=0):
    """Blurred noise, (3, H, W) uint8."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.integers(0, 256, (3, 6, 6), np.uint8))
    return v2.functional.resize(coarse, [height, width], antialias=True)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2), (2, 3, 1, 0)])
@pytest.mark.parametrize("ranges", [(0.4, 0.3, 0.2, 0.1), (0.0, 1.5, 0.0, 0.5)])
def test_colours_change_as_torchvision_changes_them(order, ranges):
    peer = v2.ColorJitter(*ranges)
    names = ("brightness", "contrast", "saturation", "hue")
    asked = {}
    for share in (0.0, 0.3, 1.0):

        def uniform(lows, highs, share=share):
            asked.update(lows=lows, highs=highs)
            return np.array(lows) + share * (np.array(highs) - lows)

        rng = SimpleNamespace(permutation=lambda number: np.array(order), uniform=uniform)
        found = jitter_colours(picture(), ranges, rng)
        ends = [getattr(peer, name) or (None, None) for name in names]
        for low, high, (first, last) in zip(asked["lows"], asked["highs"], ends, strict=True):
            assert (low == high) if first is None else ((low, high) == (first, last))
        factors = {
            f"{name}_factor": None if low is None else low + share * (high - low)
            for name, (low, high) in zip(names, ends, strict=True)
        }
        expected = peer.transform(picture(), {"fn_idx": torch.tensor(order), **factors})
        assert torch.equal(found, expected)
    assert not torch.equal(found, picture())


@pytest.mark.parametrize("strength", [0, 9, 30])
@pytest.mark.parametrize("coin", [0.2, 0.8])
def test_operations_of_rand_augment_are_torchvision_s(monkeypatch, strength, coin):
    """Each of its table, by its place there, in pairs with the next."""
    number = len(operations_of(32))
    assert number == len(v2.RandAugment()._AUGMENTATION_SPACE)
    for first in range(number):
        places = [first, (first + 1) % number]
        own = iter(places)
        rng = SimpleNamespace(integers=lambda high, own=own: next(own), random=lambda: coin)
        found = rand_augment(picture(), 2, strength, rng)
        with monkeypatch.context() as patch:
            theirs = iter(places)
            patch.setattr(torch, "randint", lambda *_, t=theirs: torch.tensor(next(t)))
            patch.setattr(torch, "rand", lambda *_: torch.tensor(coin))
            expected = v2.RandAugment(2, strength)(picture())
        assert torch.equal(found, expected), places


def erased(image):
    """Top, left, height and width of what is 0 in an image of ones; None where nothing is."""
    rows, columns = (np.flatnonzero((image == 0).any(axis)) for axis in (1, 0))
    if len(rows) == 0:
        return None
    assert (image == 0).sum() == len(rows) * len(columns)
    return rows[0], columns[0], len(rows), len(columns)


def test_rectangles_are_erased_where_and_as_large_as_by_torchvision():
    ones = torch.ones(3, 40, 40, dtype=torch.uint8)
    rng = np.random.default_rng(0)
    ours = [erased(erase_rectangle(ones, rng, [0, 0, 0])[0].numpy()) for _ in range(1500)]
    assert ones.min() == 1  # nothing is written to the image itself
    peer = v2.RandomErasing()
    theirs = [peer.make_params([ones]) for _ in range(1500)]
    theirs = [tuple(each[name] for name in "ijhw") for each in theirs]
    for column in range(4):
        first, second = ([box[column] for box in boxes if box] for boxes in (ours, theirs))
        assert stats.ks_2samp(first, second).pvalue > 1e-3
    areas = [height * width / 1600 for _, _, height, width in ours]
    assert 0.01 < min(areas) < 0.03 and 0.31 < max(areas) < 0.35


def test_erasing_has_its_probability_and_the_mean_colour():
    white = np.full((24, 24, 3), 255, np.uint8)
    rng = np.random.default_rng(0)
    augmentation = Augmentation(random_erasing=0.3)
    crops = [augmentation.change(white, rng, IMAGENET_MEAN) for _ in range(1000)]
    assert 0.25 < np.mean([(crop < 255).any() for crop in crops]) < 0.35
    colours = {tuple(pixel) for crop in crops for pixel in crop.reshape(-1, 3)}
    assert colours == {(255, 255, 255), (124, 116, 104)}  # ImageNet's mean in grey levels


def test_crops_have_the_aspect_that_is_asked_for():
    rng = np.random.default_rng(0)
    crops = [Augmentation(crop_aspect=(1, 2)).draw_crop(600, 800, rng, 24) for _ in range(1000)]
    aspects = np.array([crop.width / crop.height for crop in crops])
    assert aspects.min() > 0.99 and aspects.max() < 2.02
    assert stats.kstest(aspects, stats.uniform(1, 1).cdf).pvalue > 1e-3
    [square] = {
        c.width - c.height
        for c in [Augmentation(crop_aspect=(1, 1)).draw_crop(90, 70, rng, 24) for _ in range(50)]
    }
    assert square == 0


@pytest.mark.parametrize(
    ("size", "peer"), [((36,), v2.Resize(36)), ((30, 40), v2.Resize((30, 40)))]
)
def test_random_crops_are_cut_from_the_resized_image(size, peer):
    """torchvision's Resize and RandomCrop, as NormSoftmax has them; every place is reached."""
    rgb = picture(48, 72).permute(1, 2, 0).numpy()
    augmentation = Augmentation(resize_first=size, train_crop="random", horizontal_flip=False)
    options = replace(PREPROCESSING, augmentation=augmentation)
    resized = peer(picture(48, 72)).permute(1, 2, 0).numpy()
    places, rng = set(), np.random.default_rng(0)
    for _ in range(600):
        image = options.resize_first(rgb)
        crop = options.draw_crop(*image.shape[:2], rng)
        pixels = options.train_crop(image, crop, rng)
        expected = resized[crop.top : crop.top + 24, crop.left : crop.left + 24]
        np.testing.assert_array_equal(pixels, expected)
        places.add((crop.top, crop.left))
    spare = resized.shape[0] - 24, resized.shape[1] - 24
    assert {top for top, _ in places} == set(range(spare[0] + 1))
    assert {left for _, left in places} == set(range(spare[1] + 1))


@pytest.mark.parametrize("transform", ["reference", "standard", "v1"])
def test_test_images_keep_the_ratio_that_is_asked_for(transform):
    """The crop is the centre of that of the whole short side at another size."""
    rgb = picture(84, 60).permute(1, 2, 0).numpy()
    options = replace(PREPROCESSING, transform=transform, resize_ratio=1.25)
    whole = replace(PREPROCESSING, transform=transform, crop_size=30, resize_ratio=1.0)
    assert options.covered == (30, 30) and "short side of 30 pixels" in " ".join(options.steps())
    crop = options.test_crop(rgb)
    assert crop.shape == (24, 24, 3)
    np.testing.assert_array_equal(crop, whole.test_crop(rgb)[3:27, 3:27])


@pytest.fixture
def image_set():
    """Six classes of four images in memory."""
    labels = np.repeat(np.arange(6), 4)
    images = [picture(30 + i, 40, i).permute(1, 2, 0).numpy() for i in range(24)]
    names = {label: str(label) for label in range(6)}
    whole = np.ones(24, bool)
    paths = [str(i) for i in range(24)]
    return ImageSet("test", "train", paths, labels, names, whole, whole, images)


def load(image_set, augmentation, start=0, workers=0, rank=0, world_size=1):
    """The crops of steps up to 4, (n, B, 3, S, S)."""
    loader = train_loader(
        image_set,
        ClassBlockSampler(image_set.labels, 8, 2, rank=rank, world_size=world_size),
        replace(PREPROCESSING, augmentation=augmentation),
        start_step=start,
        end_step=4,
        seed=3,
        num_workers=workers,
        pin_memory=False,
    )
    return torch.stack([batch.images for batch in loader])


def test_changes_follow_from_seed_and_draw_alone(image_set):
    state = torch.get_rng_state()
    whole = load(image_set, EVERYTHING)
    assert torch.equal(whole, load(image_set, EVERYTHING, workers=2))
    assert torch.equal(whole[2:], load(image_set, EVERYTHING, start=2))
    shares = [load(image_set, EVERYTHING, rank=rank, world_size=2) for rank in range(2)]
    assert torch.equal(whole, torch.cat(shares, dim=1))
    assert torch.equal(state, torch.get_rng_state())


def test_what_is_done_to_crops_does_not_move_them(image_set):
    plain = load(image_set, Augmentation()).float()
    changed = load(image_set, Augmentation(color_jitter=(0.05, 0, 0, 0))).float()
    assert 0 < (plain - changed).abs().max() <= 14
