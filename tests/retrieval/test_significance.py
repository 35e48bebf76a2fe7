"""Intervals and p values against naive resampling, enumeration and simulation."""

from itertools import product
from math import comb

import numpy as np
import pytest

from metric_learning.retrieval import significance
from metric_learning.retrieval.significance import bootstrap_interval, compare_paired


def make(num_classes, per_class, seed=0, spread=1.5):
    """Scores of 0 and 1 whose classes differ in how easy they are, with uneven class sizes."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(max(1, per_class // 2), 2 * per_class, num_classes)
    labels = rng.permutation(np.repeat(np.arange(num_classes), sizes))
    chances = 1 / (1 + np.exp(-rng.normal(0.8, spread, num_classes)))
    return (rng.random(len(labels)) < chances[labels]).astype(np.float64), labels


def test_interval_is_that_of_drawing_classes_one_by_one():
    values, labels = make(30, 6)
    rng = np.random.default_rng(1)
    means = []
    for _ in range(4000):
        drawn = [values[labels == label] for label in rng.integers(0, 30, 30)]
        means.append(np.concatenate(drawn).mean())
    found = bootstrap_interval(values, labels, num_samples=4000)
    assert found == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.01)
    narrower = bootstrap_interval(values, labels, num_samples=4000, confidence=0.5)
    assert narrower == pytest.approx(tuple(np.quantile(means, [0.25, 0.75])), abs=0.01)


def test_columns_share_the_draws():
    values, labels = make(20, 5)
    columns = np.stack([values, 1 - values, np.ones_like(values)], axis=1)
    low, high = bootstrap_interval(columns, labels)
    assert low.shape == high.shape == (3,)
    assert (low[0], high[0]) == bootstrap_interval(values, labels)
    assert (low[1], high[1]) == pytest.approx((1 - high[0], 1 - low[0]), rel=1e-12)
    assert (low[2], high[2]) == (1, 1)
    as_bool = bootstrap_interval(columns.astype(bool), labels)
    assert np.array_equal(as_bool, (low, high))


def test_chunks_do_not_change_the_interval(monkeypatch):
    values, labels = make(20, 5)
    whole = bootstrap_interval(values, labels), compare_paired(values, values[::-1], labels)
    monkeypatch.setattr(significance, "CHUNK_ELEMENTS", 70)
    assert bootstrap_interval(values, labels) == whole[0]
    assert compare_paired(values, values[::-1], labels).p_permutation == whole[1].p_permutation


def test_seeds_are_repeatable_and_matter():
    values, labels = make(20, 5)
    assert bootstrap_interval(values, labels) == bootstrap_interval(values, labels, seed=0)
    assert bootstrap_interval(values, labels) != bootstrap_interval(values, labels, seed=1)


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    num_classes, per_class, num_trials = 50, 8, 300
    labels = np.repeat(np.arange(num_classes), per_class)
    num_covered = num_covered_by_queries = 0
    for trial in range(num_trials):
        chances = rng.beta(2, 1, num_classes)  # of mean 2 / 3
        values = rng.random(len(labels)) < chances[labels]
        low, high = bootstrap_interval(values, labels, num_samples=300, seed=trial)
        num_covered += low <= 2 / 3 <= high
        low, high = bootstrap_interval(values, np.arange(len(labels)), num_samples=300, seed=trial)
        num_covered_by_queries += low <= 2 / 3 <= high
    assert 0.91 <= num_covered / num_trials <= 0.98
    assert num_covered_by_queries / num_trials < 0.85  # what taking queries for independent costs


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


def test_classes_that_do_not_differ_leave_the_p_value_exact():
    labels = np.arange(100)
    first, second = np.zeros(100), np.zeros(100)
    second[:3] = 1
    assert compare_paired(first, second, labels).p_permutation == 2 / 2**3


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
        values.append(compare_paired(np.zeros(40), shared, labels, num_samples=1).p_permutation)
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
    values, labels = make(5, 4)
    with pytest.raises(ValueError, match="at least 2 classes.*found 1"):
        bootstrap_interval(values, np.zeros(len(values), np.int64))
    with pytest.raises(ValueError, match="at least 2 classes.*found 0"):
        bootstrap_interval(values[:0], labels[:0])
    with pytest.raises(ValueError, match=f"{len(values)} labels"):
        bootstrap_interval(values, labels[1:])
    with pytest.raises(ValueError, match="shape"):
        bootstrap_interval(np.float64(1), labels)
    with pytest.raises(ValueError, match="NaN"):
        bootstrap_interval(np.where(labels == 0, np.nan, values), labels)
    with pytest.raises(ValueError, match="confidence between 0 and 1"):
        bootstrap_interval(values, labels, confidence=95)
    with pytest.raises(ValueError, match="num_samples"):
        bootstrap_interval(values, labels, num_samples=0)
    with pytest.raises(ValueError, match="the same queries"):
        compare_paired(values, values[1:], labels)
