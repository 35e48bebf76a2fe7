"""Samplers: coverage, structure of batches, shares of ranks, repetition and errors."""

import numpy as np
import pytest

from metric_learning.reader.batches.samplers import (
    ClassBlockSampler,
    PairSampler,
    ShuffledSampler,
    TripleSampler,
)

SAMPLERS = {
    "shuffled": lambda labels, batch_size, **options: ShuffledSampler(
        labels, batch_size, **options
    ),
    "blocks": lambda labels, batch_size, **options: ClassBlockSampler(
        labels, batch_size, 3, **options
    ),
    "triples": lambda labels, batch_size, **options: TripleSampler(labels, batch_size, **options),
    "pairs": lambda labels, batch_size, **options: PairSampler(labels, batch_size, **options),
}


@pytest.fixture
def labels():
    rng = np.random.default_rng(0)
    return rng.permutation(np.repeat(np.arange(20) * 7, rng.integers(1, 9, size=20)))


def test_shuffled_epochs_hold_every_image_once(labels):
    num_images = len(labels)
    sampler = ShuffledSampler(labels, batch_size=17, seed=3)
    stream = np.concatenate([sampler.batch(step) for step in range(40)])
    epochs = stream[: len(stream) // num_images * num_images].reshape(-1, num_images)
    assert len(epochs) >= 5
    assert (np.sort(epochs, axis=1) == np.arange(num_images)).all()
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


def test_shuffled_batch_may_be_larger_than_the_data_set():
    batch = ShuffledSampler(np.arange(5), batch_size=17).batch(0)
    assert len(batch) == 17
    assert all(sorted(batch[i : i + 5]) == list(range(5)) for i in (0, 5, 10))


@pytest.mark.parametrize("name", SAMPLERS)
def test_batch_depends_on_seed_and_step_alone(name, labels):
    first, second = SAMPLERS[name](labels, 24, seed=1), SAMPLERS[name](labels, 24, seed=1)
    forwards = [first.batch(step) for step in range(12)]
    backwards = [second.batch(step) for step in reversed(range(12))][::-1]
    np.testing.assert_array_equal(forwards, backwards)
    assert len({batch.tobytes() for batch in forwards}) == 12
    other = SAMPLERS[name](labels, 24, seed=2)
    assert not np.array_equal(other.batch(0), forwards[0])


@pytest.mark.parametrize("name", SAMPLERS)
def test_ranks_share_the_global_batch(name, labels):
    whole = SAMPLERS[name](labels, 48, seed=1)
    ranks = [SAMPLERS[name](labels, 48, seed=1, rank=rank, world_size=4) for rank in range(4)]
    for step in (0, 1, 50):
        shares = [sampler.batch(step) for sampler in ranks]
        assert [len(share) for share in shares] == [12] * 4
        np.testing.assert_array_equal(np.concatenate(shares), whole.batch(step))


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_draw_blocks_of_different_classes(labels, world_size):
    """What they gather is a P-K batch again: no class twice, K images of each."""
    ranks = [
        ClassBlockSampler(labels, 24, 3, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for step in range(20):
        classes = [set(labels[sampler.batch(step)]) for sampler in ranks]
        assert [len(part) for part in classes] == [8 // world_size] * world_size
        assert len(set().union(*classes)) == 8


def test_blocks_have_distinct_classes_and_images(labels):
    sampler = ClassBlockSampler(labels, 24, samples_each_class=3)
    sizes = {label: (labels == label).sum() for label in labels}
    assert sampler.num_repeated_classes == sum(size < 3 for size in sizes.values()) > 0
    for step in range(50):
        blocks = sampler.batch(step).reshape(8, 3)
        block_labels = labels[blocks]
        assert (block_labels == block_labels[:, :1]).all()
        assert len(np.unique(block_labels[:, 0])) == 8
        for block, label in zip(blocks, block_labels[:, 0], strict=True):
            assert len(np.unique(block)) == min(3, sizes[label])


@pytest.mark.parametrize(("size", "counts"), [(1, [5]), (2, [2, 3]), (4, [1, 1, 1, 2])])
def test_small_classes_are_repeated_evenly(size, counts):
    labels = np.repeat([0, 1], [size, 9])
    sampler = ClassBlockSampler(labels, 10, samples_each_class=5)
    assert sampler.num_repeated_classes == 1
    for step in range(20):
        batch = sampler.batch(step)
        small = batch[labels[batch] == 0]
        assert sorted(np.unique(small, return_counts=True)[1]) == counts


def test_blocks_reach_all_classes_and_images(labels):
    sampler = ClassBlockSampler(labels, 24, samples_each_class=3)
    seen = np.bincount(np.concatenate([sampler.batch(step) for step in range(300)]))
    assert (seen > 0).all()
    assert len(seen) == len(labels)
    per_class = np.array([seen[labels == label].sum() for label in np.unique(labels)])
    assert 0.7 < per_class.min() / per_class.mean() < per_class.max() / per_class.mean() < 1.3


def test_triples_are_anchor_positive_negative(labels):
    sampler = TripleSampler(labels, 24)
    triples = np.concatenate([sampler.batch(step).reshape(8, 3) for step in range(300)])
    anchors, positives, negatives = triples.T
    assert (labels[anchors] == labels[positives]).all()
    assert (anchors != positives).all()
    assert (labels[anchors] != labels[negatives]).all()
    single = [label for label in np.unique(labels) if (labels == label).sum() == 1]
    assert single
    assert not np.isin(labels[anchors], single).any()
    assert set(labels[negatives]) == set(labels)
    assert set(anchors) == set(np.flatnonzero(~np.isin(labels, single)))


def test_pairs_are_in_turn_of_one_class_and_of_two(labels):
    sampler = PairSampler(labels, 24)
    groups = np.concatenate([sampler.batch(step).reshape(6, 4) for step in range(300)])
    assert (labels[groups[:, 0]] == labels[groups[:, 1]]).all()
    assert (groups[:, 0] != groups[:, 1]).all()
    assert (labels[groups[:, 2]] != labels[groups[:, 3]]).all()
    sizes = {label: (labels == label).sum() for label in labels}
    single = [label for label, size in sizes.items() if size == 1]
    assert single and sampler.note == f"{len(single)} classes have one image: negatives only"
    assert set(groups[:, :2].ravel()) == set(np.flatnonzero(~np.isin(labels, single)))
    assert set(groups[:, 2:].ravel()) == set(range(len(labels)))


def test_streams_of_one_seed_differ():
    labels = np.repeat(np.arange(100), 3)
    blocks = ClassBlockSampler(labels, 60, 3, seed=5).batch(4)[::3] // 3
    triples = TripleSampler(labels, 60, seed=5).batch(4)[::3] // 3
    assert (blocks == triples).mean() < 0.2


def test_batches_of_sop_size_are_whole():
    rng = np.random.default_rng(0)
    labels = np.sort(np.concatenate([np.arange(11318), rng.integers(11318, size=59551 - 11318)]))
    for sampler in (
        ShuffledSampler(labels, 160),
        ClassBlockSampler(labels, 160, 2),
        TripleSampler(labels, 159),
    ):
        for step in range(50):
            batch = sampler.batch(step)
            assert len(batch) == sampler.batch_size and len(set(batch)) > sampler.batch_size // 2


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda y: ClassBlockSampler(y, 25, 3), "multiple of 3 .*got 25.*train_batch_size=24"),
        (lambda y: ClassBlockSampler(y, 24, 3, world_size=5), "3 .* x 5 .*train_batch_size=30"),
        (lambda y: ClassBlockSampler(y, 24, 1), "at least 2 images.*samples_each_class"),
        (
            lambda y: ClassBlockSampler(y, 80, 2),
            "at least 40 training classes .*got 20: .*batch_size=40 or .*samples_each_class=4",
        ),
        (lambda y: ClassBlockSampler(y, 24, 3, rank=2, world_size=2), "rank"),
        (lambda y: ClassBlockSampler(y, 24, 3, seed=-1), "--seed"),
        (lambda y: TripleSampler(y, 25), "multiple of 3 .*got 25.*train_batch_size=24"),
        (lambda y: TripleSampler(y, 24, world_size=3), "3 .* x 3 .*got 24"),
        (lambda y: TripleSampler(y * 0, 24), "at least 2 training classes.*got 1"),
        (lambda y: TripleSampler(np.arange(9), 24), "2 images or more.*9 classes"),
        (lambda y: PairSampler(y, 26), "4 .a positive and a negative pair.*got 26"),
        (lambda y: PairSampler(y * 0, 24), "at least 2 training classes for pairs, got 1"),
        (lambda y: PairSampler(np.arange(9), 24), "2 images or more for pairs.*9 classes"),
        (lambda y: ShuffledSampler(y, 25, world_size=2), "multiple of 2 .devices"),
        (lambda y: ShuffledSampler(y, 0), "positive"),
        (lambda y: ShuffledSampler(y[:0], 4), "none"),
    ],
)
def test_errors_are_one_line_that_says_what_to_do(build, message, labels):
    with pytest.raises(ValueError, match=message) as error:
        build(labels)
    assert "\n" not in str(error.value)


def test_notes_say_what_is_repeated_or_left_out():
    triples = TripleSampler(np.array([0, 0, 1, 2]), 3)
    assert triples.note == "2 classes have one image: negatives only"
    blocks = ClassBlockSampler(np.array([0, 0, 1, 1, 2]), 4, samples_each_class=2)
    assert blocks.note == "1 classes have fewer than 2 images: theirs are repeated"
    assert ShuffledSampler(np.array([0, 1]), 5).note == "a batch of 5 repeats images: there are 2"
    assert not ShuffledSampler(np.array([0, 1]), 2).note
