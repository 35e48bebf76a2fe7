"""Batches of near classes and of pairs of super classes."""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from metric_learning.reader.batches.related_classes import (
    BATCHES_PER_PAIR,
    HardClassSampler,
    HierarchicalSampler,
    read_nearest,
)

NUM_CLASSES = 20
SUPERS = np.repeat([0, 1, 2, 3], [8, 6, 4, 2])


@pytest.fixture
def labels():
    rng = np.random.default_rng(0)
    return rng.permutation(np.repeat(np.arange(NUM_CLASSES), rng.integers(1, 9, NUM_CLASSES)))


def nearest_of(num_classes, count):
    """Classes on a circle: the nearest are those of the next numbers, in turn up and down."""
    steps = [(-1) ** k * -((k + 2) // 2) for k in range(count)]
    return (np.arange(num_classes)[:, None] + steps).astype(np.int32) % num_classes


def hierarchical(labels, batch_size=12, *share):
    return HierarchicalSampler(labels, batch_size, 2, SUPERS, *share)


def hard(labels, batch_size=24, *share):
    nearest = nearest_of(NUM_CLASSES, batch_size // 2 - 1)
    return HardClassSampler(labels, batch_size, 2, nearest, 2, *share)


@pytest.mark.parametrize("build", [hierarchical, hard])
def test_batches_are_blocks_that_follow_from_seed_and_step(build, labels):
    first, second = build(labels), build(labels)
    forwards = [first.batch(step) for step in range(80)]
    backwards = [second.batch(step) for step in reversed(range(80))][::-1]
    np.testing.assert_array_equal(forwards, backwards)
    for batch in forwards:
        blocks = labels[batch].reshape(-1, 2)
        assert (blocks[:, 0] == blocks[:, 1]).all() and len(set(blocks[:, 0])) == len(blocks)
    assert not np.array_equal(build(labels, len(batch), 1).batch(0), forwards[0])
    assert {label for batch in forwards for label in labels[batch]} == set(range(NUM_CLASSES))


@pytest.mark.parametrize("build", [hierarchical, hard])
def test_ranks_share_the_global_batch(build, labels):
    ranks = [build(labels, 12, 3, rank, 2) for rank in range(2)]
    whole = build(labels, 12, 3)
    for step in (0, 7, 100):
        shares = [sampler.batch(step) for sampler in ranks]
        np.testing.assert_array_equal(np.concatenate(shares), whole.batch(step))


def test_every_pair_of_super_classes_comes_as_often_in_an_epoch(labels):
    sampler = hierarchical(labels, 8)
    orders = []
    for epoch in range(2):
        pairs = Counter()
        for step in range(6 * BATCHES_PER_PAIR):
            supers = SUPERS[labels[sampler.batch(epoch * 6 * BATCHES_PER_PAIR + step)][::2]]
            pairs[tuple(sorted(set(supers)))] += 1
            assert Counter(supers).most_common()[0][1] == 2  # half of four classes
            orders.append(tuple(supers))
        assert pairs == dict.fromkeys(combinations(range(4), 2), BATCHES_PER_PAIR)
    assert len(set(orders)) > 10


def test_a_large_super_class_stands_in_for_a_small_one(labels):
    sampler = hierarchical(labels, 12)
    for step in range(60):
        counts = Counter(SUPERS[labels[sampler.batch(step)][::2]])
        assert sum(counts.values()) == 6 and len(counts) == 2
        assert counts.get(3, 2) == 2  # of which there are two classes
        assert 3 in counts or set(counts.values()) == {3}


def test_groups_are_a_class_and_its_nearest(labels):
    """Against a plain loop that passes over what is taken."""
    sampler = hard(labels, 24)
    nearest = nearest_of(NUM_CLASSES, NUM_CLASSES - 1)
    anchors = []
    for step in range(200):
        taken = set()
        for anchor, *group in labels[sampler.batch(step)][::2].reshape(4, 3):
            assert anchor not in taken
            taken.add(anchor)
            expected = [number for number in nearest[anchor] if number not in taken][:2]
            assert group == expected
            taken.update(group)
        anchors.append(labels[sampler.batch(step)][0])
    assert set(anchors) == set(range(NUM_CLASSES))


def test_all_classes_may_be_in_a_batch(labels):
    sampler = HardClassSampler(labels[labels < 12], 24, 2, nearest_of(12, 11), 3)
    for step in range(50):
        assert len(set(labels[labels < 12][sampler.batch(step)])) == 12


def test_the_nearest_are_kept_in_the_run_folder(labels, tmp_path):
    sampler, shape = hard(labels), (NUM_CLASSES, 11)
    assert read_nearest(tmp_path, shape) is None
    sampler.save(tmp_path)
    np.testing.assert_array_equal(read_nearest(tmp_path, shape), nearest_of(*shape))
    assert read_nearest(tmp_path, (NUM_CLASSES, 12)) is None
    hierarchical(labels).save(tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda y: HierarchicalSampler(y, 12, 2, SUPERS * 0), "needs 2 super classes, found 1"),
        (lambda y: hierarchical(y, 14), "have 6 classes, a batch takes 7: .*batch_size=12"),
        (lambda y: hard(y, 20), r"multiple of 6 .--samples_each_class x .1 \+ --hard_classes"),
        (lambda y: hard(y, 18, 0, 0, 2), "x 2 .devices"),
        (lambda y: hard(y, 60), "at least 30 training classes"),
    ],
)
def test_errors_are_one_line_that_says_what_to_do(build, message, labels):
    with pytest.raises(ValueError, match=message) as error:
        build(labels)
    assert "\n" not in str(error.value)
