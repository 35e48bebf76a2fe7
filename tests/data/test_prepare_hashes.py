import io

import numpy as np
import pytest
from PIL import Image

from metric_learning.data.prepare.hashes import (
    find_near_duplicates,
    group_near_duplicates,
    perceptual_hash,
)


def picture(seed: int, width: int = 96, height: int = 80) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def hash_of(image: Image.Image) -> int:
    return perceptual_hash(np.asarray(image.convert("RGB")))


def bits_between(a: int, b: int) -> int:
    return (a ^ b).bit_count()


def as_jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file)


@pytest.mark.parametrize(
    "change",
    [
        lambda image: as_jpeg(image, 70),
        lambda image: image.resize((48, 40)),
        lambda image: image.resize((300, 250)),
        lambda image: image.convert("L"),
        lambda image: image.point(lambda value: value * 0.8 + 10),
    ],
    ids=["quality", "smaller", "larger", "grey", "darker"],
)
def test_a_changed_copy_has_nearly_the_same_hash_and_another_picture_has_not(change):
    for seed in range(10):
        own = hash_of(picture(seed))
        assert bits_between(own, hash_of(change(picture(seed)))) <= 4
        assert bits_between(own, hash_of(picture(seed + 100))) > 12


def test_flat_images_of_any_size_and_a_single_pixel_have_one_hash():
    hashes = {
        hash_of(Image.new("RGB", size, (90, 120, 9))) for size in ((1, 1), (64, 48), (7, 300))
    }
    assert len(hashes) == 1 and 0 <= hashes.pop() < 2**64


def naive(hashes, threshold):
    """Keep what is far from all that was kept before; then name the nearest kept one's distance."""
    bits = np.array([[bits_between(int(a), int(b)) for b in hashes] for a in hashes])
    kept: list[int] = []
    for i in range(len(hashes)):
        if not kept or bits[i, kept].min() > threshold:
            kept.append(i)
    return kept, bits


@pytest.mark.parametrize("threshold", [0, 1, 4, 7, 8, 15])
def test_near_duplicates_are_those_of_the_naive_loop(threshold):
    rng = np.random.default_rng(threshold)
    hashes = rng.integers(0, 2**64, 40, dtype=np.uint64)[rng.integers(0, 40, 300)]
    for _ in range(6):
        changed = rng.random(len(hashes)) < 0.5
        flips = np.uint64(1) << rng.integers(0, 64, changed.sum(), dtype=np.uint64)
        hashes[changed] ^= flips
    kept, bits = naive(hashes, threshold)
    keepers, distances = find_near_duplicates(hashes, threshold)
    assert np.unique(keepers).tolist() == kept
    assert (distances == bits[:, kept].min(axis=1)).all()
    assert (distances == bits[np.arange(len(hashes)), keepers]).all()


def test_groups_do_not_grow_from_neighbour_to_neighbour_across_blocks():
    chain = np.array([2**n - 1 for n in range(64)], dtype=np.uint64)  # each one bit further
    rng = np.random.default_rng(0)
    hashes = np.concatenate([chain[:32], rng.integers(0, 2**64, 3000, dtype=np.uint64), chain[32:]])
    keepers, distances = find_near_duplicates(hashes, 2)
    of_chain = np.r_[keepers[:32], keepers[-32:]]
    places = np.where(of_chain < 32, of_chain, of_chain - 3000)
    assert distances.max() <= 2
    assert len(set(places.tolist())) == 22  # every third
    assert (keepers[32:-32] == np.arange(32, 3032)).all()


def test_many_equal_hashes_are_one_group():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 20_000, dtype=np.uint64)
    hashes[1::2] = hashes[0]
    keepers, distances = find_near_duplicates(hashes, 4)
    assert (keepers[1::2] == 0).all() and (keepers[::2] == np.arange(0, 20_000, 2)).all()
    assert not distances.any()


@pytest.mark.parametrize("threshold", [0, 1, 4, 7, 12])
def test_groups_are_the_components_of_near_hashes(threshold):
    """Against a search from neighbour to neighbour, among hashes of every distance, and chains."""
    rng = np.random.default_rng(threshold)
    seeds = rng.integers(0, 2**64, 20, dtype=np.uint64)
    hashes = [int(seed) for seed in seeds for _ in range(2)]
    while len(hashes) < 250:
        flipped = rng.choice(64, rng.integers(1, 14), replace=False)
        hashes.append(hashes[rng.integers(len(hashes))] ^ sum(1 << int(bit) for bit in flipped))

    expected = [-1] * len(hashes)
    for start in range(len(hashes)):
        reached = [start] if expected[start] < 0 else []
        while reached:
            here = reached.pop()
            expected[here] = start
            reached += [
                other
                for other, found in enumerate(expected)
                if found < 0 and bits_between(hashes[here], hashes[other]) <= threshold
            ]
    groups = group_near_duplicates(np.array(hashes, dtype=np.uint64), threshold)
    assert groups.dtype == np.int64 and len(set(groups.tolist())) == len(set(expected))
    assert len(set(zip(groups.tolist(), expected, strict=True))) == len(set(expected))


def test_many_near_hashes_are_joined_in_parts(monkeypatch):
    """Pairs are kept up to a number, here of three, whatever their order."""
    hashes = np.array([1 << bit for bit in range(12)], dtype=np.uint64)  # any two differ in 2 bits
    apart = ~hashes[:4]
    monkeypatch.setattr("metric_learning.data.prepare.hashes._MAX_LINKS", 3)
    groups = group_near_duplicates(np.concatenate([hashes, apart, hashes]), 2)
    assert len(set(groups[:12])) == 1 and groups[0] == groups[-1] != groups[12]
    assert len(set(groups)) == 2
