"""Views of images, and batches of the features that are kept of them."""

import numpy as np
import pytest
import torch
from PIL import Image

from metric_learning.reader.batches.loader import eval_loader
from metric_learning.reader.batches.samplers import ClassBlockSampler
from metric_learning.reader.batches.views import FeatureBatches, view_loader
from metric_learning.reader.preprocessing import Preprocessing
from metric_learning.reader.sets.image_set import ImageError, ImageSet
from metric_learning.reader.transforms import IMAGENET_MEAN, IMAGENET_STD

PREPROCESSING = Preprocessing("standard", 16, IMAGENET_MEAN, IMAGENET_STD)
LABELS = np.repeat(np.arange(4), 3)


@pytest.fixture
def image_set(tmp_path):
    """Twelve pictures of noise."""
    rng = np.random.default_rng(0)
    paths = [str(tmp_path / f"{number}.png") for number in range(len(LABELS))]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8)).save(path)
    everything = np.ones(len(paths), bool)
    names = {label: str(label) for label in range(4)}
    return ImageSet("test", "train", paths, LABELS, names, everything, everything)


def views_of(image_set, rows, num_views=3, batch_size=5, num_workers=0):
    """Crops of rows, (n, 1 + V, 3, S, S) uint8."""
    loader = view_loader(
        image_set,
        PREPROCESSING,
        num_views,
        rows=np.array(rows),
        batch_size=batch_size,
        num_workers=num_workers,
        pin_memory=False,
    )
    crops = torch.cat([batch.images for batch in loader])
    return crops.unflatten(0, (len(rows), 1 + num_views))


def test_the_first_view_is_that_of_a_test_and_the_others_differ(image_set):
    views = views_of(image_set, range(12))
    tests = eval_loader(image_set, PREPROCESSING, batch_size=12, num_workers=0, pin_memory=False)
    assert torch.equal(views[:, 0], next(iter(tests)).images)
    flat = views.flatten(2).numpy()
    assert all(len(np.unique(of_image, axis=0)) == 4 for of_image in flat)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_view_follows_from_its_row_and_number_alone(image_set, num_workers):
    views = views_of(image_set, range(12), num_views=5)
    some = views_of(image_set, [7, 2], num_views=2, batch_size=1, num_workers=num_workers)
    assert torch.equal(some, views[[7, 2], :3])


def test_a_broken_image_is_an_error(image_set, tmp_path):
    (tmp_path / "4.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"4\.png"):
        views_of(image_set, range(12))


def batches_of(rank, world_size, seed=0, steps=range(3)):
    """Batches of 12 images, rows 2 .. 13 of 20 with 6 views, whose features are row and view."""
    features = np.stack(np.meshgrid(np.arange(20), np.arange(6), indexing="ij"), -1)
    sampler = ClassBlockSampler(LABELS, 8, 2, 0, rank, world_size)
    rows = np.arange(2, 14)
    return FeatureBatches(features.astype(np.float32), rows, LABELS, sampler, seed, steps)


def test_batches_hold_features_of_the_drawn_images_in_a_view_each():
    batches = batches_of(0, 1)
    assert len(batches) == 3
    for step, batch in enumerate(batches):
        indices = batches.sampler.batch(step)
        assert batch.images.shape == (8, 2) and batch.images.dtype == torch.float32
        assert batch.images[:, 0].tolist() == (indices + 2).tolist()
        assert batch.labels.tolist() == LABELS[indices].tolist() and batch.broken == {}
    drawn = torch.cat([batch.images[:, 1] for batch in batches_of(0, 1, steps=range(100))])
    assert np.bincount(drawn.int().numpy(), minlength=6).min() > 90  # of 133 expected


def test_views_follow_from_seed_step_and_position_alone():
    whole = [batch.images for batch in batches_of(0, 1)]
    halves = [[batch.images for batch in batches_of(rank, 2)] for rank in range(2)]
    for step in range(3):
        assert torch.equal(whole[step], torch.cat([half[step] for half in halves]))
    [resumed] = batches_of(0, 1, steps=range(2, 3))
    assert torch.equal(whole[2], resumed.images)
    other = next(iter(batches_of(0, 1, seed=1))).images
    assert torch.equal(whole[0][:, 0], other[:, 0]) and not torch.equal(whole[0], other)
