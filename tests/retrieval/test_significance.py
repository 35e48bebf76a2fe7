"""Intervals and p values against enumeration of all sign flips and simulation."""

from itertools import product
from math import comb

import numpy as np
import pytest

from metric_learning.retrieval import significance
from metric_learning.retrieval.significance import class_interval, compare_paired


def make(num_classes, per_class, seed=0, spread=1.5):
    """Scores of 0 and 1 whose classes differ in how easy they are, with uneven class sizes."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(max(1, per_class // 2), 2 * per_class, num_classes)
    labels = rng.permutation(np.repeat(np.arange(num_classes), sizes))
    chances = 1 / (1 + np.exp(-rng.normal(0.8, spread, num_classes)))
    return (rng.random(len(labels)) < chances[labels]).astype(np.float64), labels


def all_p_values(values, labels, centres):
    """P value of the sign flips of whole classes of the values minus each of some centres."""
    classes, counts = np.unique(labels, return_counts=True)
    sums = np.array([values[labels == label].sum() for label in classes])
    signs = np.array(list(product((-1, 1), repeat=len(classes))))
    moved = sums[:, None] - counts[:, None] * centres
    return np.mean(np.abs(signs @ moved) >= np.abs(moved.sum(0)) - 1e-9, axis=0)


def test_interval_holds_the_values_whose_p_value_passes():
    values, labels = make(9, 6)
    low, high = class_interval(values, labels)
    inside = all_p_values(values, labels, np.linspace(low + 1e-6, high - 1e-6, 50))
    outside = all_p_values(values, labels, np.array([low - 1e-6, high + 1e-6, 0, 1]))
    assert inside.min() > 0.05 and outside.max() <= 0.05


def test_of_six_classes_the_interval_spans_their_means():
    values, labels = make(6, 5)
    means = [values[labels == label].mean() for label in range(6)]
    assert class_interval(values, labels) == pytest.approx((min(means), max(means)))


def test_columns_share_the_flips():
    values, labels = make(20, 5)
    columns = np.stack([values, 1 - values, np.ones_like(values)], axis=1)
    low, high = class_interval(columns, labels)
    assert low.shape == high.shape == (3,)
    assert (low[0], high[0]) == class_interval(values, labels)
    assert (low[1], high[1]) == pytest.approx((1 - high[0], 1 - low[0]), rel=1e-12)
    assert (low[2], high[2]) == (1, 1)
    as_bool = class_interval(columns.astype(bool), labels)
    assert np.array_equal(as_bool, (low, high))


def test_chunks_do_not_change_the_interval(monkeypatch):
    values, labels = make(20, 5)
    whole = class_interval(values, labels), compare_paired(values, values[::-1], labels)
    monkeypatch.setattr(significance, "CHUNK_ELEMENTS", 2000)
    assert class_interval(values, labels) == whole[0]
    assert compare_paired(values, values[::-1], labels).p_permutation == whole[1].p_permutation


def test_seeds_are_repeatable_and_matter():
    values, labels = make(40, 5)
    assert class_interval(values, labels) == class_interval(values, labels, seed=0)
    assert class_interval(values, labels) != class_interval(values, labels, seed=1)


def coverage(num_classes, is_uneven, beta, num_trials):
    """Share of trials in which the interval holds the mean of the classes' beta distribution."""
    rng = np.random.default_rng(num_classes)
    truth, num_covered = beta[0] / sum(beta), 0
    for trial in range(num_trials):
        sizes = np.full(num_classes, 20)
        if is_uneven:
            sizes = rng.lognormal(3, 1, num_classes).astype(int) + 2
        labels = np.repeat(np.arange(num_classes), sizes)
        values = rng.random(len(labels)) < rng.beta(*beta, num_classes)[labels]
        low, high = class_interval(values, labels, seed=trial)
        num_covered += low <= truth <= high
    return num_covered / num_trials


def test_intervals_of_few_classes_cover_the_truth(monkeypatch):
    monkeypatch.setattr(significance, "NUM_FLIPS", 300)
    assert 0.93 <= coverage(8, False, (2, 1), 300) <= 0.98
    assert 0.92 <= coverage(10, True, (2, 1), 300) <= 0.98


@pytest.mark.slow
@pytest.mark.parametrize("is_uneven", [False, True])
@pytest.mark.parametrize("num_classes", [6, 8, 10, 15, 25, 50])
def test_intervals_cover_the_truth_as_often_as_they_say(num_classes, is_uneven, monkeypatch):
    monkeypatch.setattr(significance, "NUM_FLIPS", 2000)
    for beta in ((2, 1), (0.5, 0.5)):
        assert 0.92 <= coverage(num_classes, is_uneven, beta, 1000) <= 0.985
    least = 0.91 if num_classes >= 15 else 0.875
    assert least <= coverage(num_classes, is_uneven, (8, 1), 1000) <= 0.98


@pytest.mark.parametrize("num_classes", [6, 9, 20])
def test_interval_and_p_value_agree(num_classes):
    rng = np.random.default_rng(num_classes)
    found = []
    for trial in range(100):
        first, labels = make(num_classes, 5, seed=trial)
        second = np.where(rng.random(len(first)) < 0.4, rng.random(len(first)) < 0.9, first)
        found.append(compare_paired(first, second, labels, seed=trial))
    is_apart = [not pair.low <= 0 <= pair.high for pair in found]
    assert is_apart == [pair.p_permutation <= 0.05 for pair in found]
    assert 0 < sum(is_apart) < 100


def test_fewer_than_six_classes_have_no_interval():
    values, labels = make(5, 4)
    found = compare_paired(values, 1 - values, labels)
    assert (found.low, found.high) == (None, None)
    assert found.p_permutation >= 2 / 2**5
    one = compare_paired(np.zeros(3), np.ones(3), np.zeros(3, np.int64))
    assert (one.low, one.p_permutation) == (None, 1)


def test_p_value_is_that_of_all_sign_flips():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(8), [3, 1, 4, 1, 5, 9, 2, 6])
    first, second = rng.random(len(labels)), rng.random(len(labels)) + 0.1
    observed = (second - first).mean()
    flipped = []
    for signs in product((-1, 1), repeat=8):
        flipped.append((np.array(signs)[labels] * (second - first)).mean())
    found = compare_paired(first, second, labels)
    assert found.difference == pytest.approx(observed)
    assert found.p_permutation == np.mean(np.abs(flipped) >= abs(observed) - 1e-12)
    assert found.p_mcnemar is None
    assert found.low < found.difference < found.high


def test_random_flips_agree_with_all_flips(monkeypatch):
    first, labels = make(12, 6, seed=3)
    second, _ = make(12, 6, seed=3, spread=1.4)
    exact = compare_paired(first, second, labels).p_permutation
    monkeypatch.setattr(significance, "MAX_EXACT_CLASSES", 1)
    assert compare_paired(first, second, labels).p_permutation == pytest.approx(exact, abs=0.02)


def test_a_p_value_is_never_zero():
    labels = np.repeat(np.arange(40), 3)
    found = compare_paired(np.zeros(120), np.ones(120), labels)
    assert found.p_permutation == 1 / 10001
    assert (found.difference, found.low, found.high) == (1, 1, 1)


def test_classes_that_do_not_differ_do_not_change_the_p_value():
    labels = np.arange(100)
    first, second = np.zeros(100), np.zeros(100)
    second[:3] = 1
    found = compare_paired(first, second, labels)
    assert found.p_permutation == pytest.approx(2 / 2**3, abs=0.02) and found.low == 0


def test_equal_models_do_not_differ():
    values, labels = make(10, 4)
    found = compare_paired(values, values, labels)
    assert (found.difference, found.low, found.high) == (0, 0, 0)
    assert found.p_permutation == found.p_mcnemar == 1
    assert len(found.improved) == len(found.worsened) == 0


def test_p_values_are_uniform_where_nothing_differs():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 4)
    values = []
    for _ in range(300):
        shared = rng.normal(size=10)[labels]  # the queries of a class go up and down together
        values.append(compare_paired(np.zeros(40), shared, labels).p_permutation)
    for level in (0.05, 0.2, 0.5):
        error = 3 * np.sqrt(level * (1 - level) / 300)
        assert abs(np.mean(np.array(values) <= level) - level) < error


def test_mcnemar_counts_the_queries_that_changed():
    first = np.array([0, 0, 0, 0, 0, 1, 1, 1, 0, 1])
    second = np.array([1, 1, 1, 1, 1, 0, 1, 1, 0, 1])
    found = compare_paired(first, second, np.arange(10) // 2)
    assert found.improved.tolist() == [0, 1, 2, 3, 4]
    assert found.worsened.tolist() == [5]
    tail = sum(comb(6, wins) for wins in (5, 6)) / 2**6
    assert found.p_mcnemar == pytest.approx(2 * tail)


def test_wrong_arguments_are_errors():
    values, labels = make(7, 4)
    with pytest.raises(ValueError, match="at least 6 classes.*found 1"):
        class_interval(values, np.zeros(len(values), np.int64))
    with pytest.raises(ValueError, match="at least 6 classes.*found 0"):
        class_interval(values[:0], labels[:0])
    with pytest.raises(ValueError, match=f"{len(values)} labels"):
        class_interval(values, labels[1:])
    with pytest.raises(ValueError, match="shape"):
        class_interval(np.float64(1), labels)
    with pytest.raises(ValueError, match="NaN"):
        class_interval(np.where(labels == 0, np.nan, values), labels)
    with pytest.raises(ValueError, match="the same queries"):
        compare_paired(values, values[1:], labels)
