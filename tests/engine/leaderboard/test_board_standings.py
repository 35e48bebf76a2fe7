"""Figures of rows and their differences: how often they are right in simulations."""

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from metric_learning.engine.leaderboard.tables.standings import (
    Contrast,
    Scores,
    contrast,
    figure_of,
    holm,
    standard_error,
)

CLASSES, EACH = 30, 6


def scores_of(values, units=None):
    """Return the scores (S, Q) of a row; without `units`, EACH queries a class."""
    values = np.asarray(values, np.float64)
    number = values.shape[1]
    units = np.arange(number) // EACH if units is None else units
    return Scores(np.arange(number), units, {"recall@1": values, "map@r": values / 2})


def draw_row(rng, effects, seeds, deviation, lift=0.0):
    """Draw 0 and 1 of classes with effects (C,), and of seeds with effects of their own."""
    number = len(effects)
    of_seed = deviation * rng.standard_normal((seeds, 1))
    own = 0.06 * rng.standard_normal((seeds, number))  # of a seed on a class
    chances = np.clip(effects + of_seed + own + lift, 0.02, 0.98)
    return scores_of(rng.random((seeds, number * EACH)) < np.repeat(chances, EACH, 1))


def share_of_found(rng, lift, seeds, deviation, number=200):
    found = []
    for _ in range(number):
        effects = rng.normal(0.5, 0.15, CLASSES)
        rows = [draw_row(rng, effects, seeds, deviation, add) for add in (0.0, lift)]
        found.append(contrast(*rows, "recall@1").p <= 0.05)
    return np.mean(found)


@pytest.mark.parametrize("deviation", [0.0, 0.03, 0.1])
def test_equal_rows_are_seldom_called_different(deviation):
    share = share_of_found(np.random.default_rng(7), 0.0, 3, deviation, 400)
    assert share <= 0.07


def test_different_rows_are_called_so():
    rng = np.random.default_rng(8)
    assert share_of_found(rng, 0.2, 3, 0.01) >= 0.95
    assert share_of_found(rng, 0.2, 5, 0.03) >= 0.9


def test_intervals_hold_the_truth_and_agree_with_p():
    rng, held = np.random.default_rng(9), []
    for _ in range(200):
        effects = rng.normal(0.5, 0.1, CLASSES)
        found = contrast(
            draw_row(rng, effects, 3, 0.03), draw_row(rng, effects, 3, 0.03, 0.1), "recall@1"
        )
        held.append(found.low <= 0.1 <= found.high)
        assert (found.low > 0 or found.high < 0) == (found.p <= 0.05)
        assert found.low <= found.difference <= found.high
    assert np.mean(held) >= 0.93


def test_holm_by_hand():
    # The procedure's own example: 4 p(1), 3 p(2), 2 p(3), p(4), each at least the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02] and holm([]) == []
    assert holm([0.02, 0.02, 0.02]) == pytest.approx([0.06] * 3)


def test_significant_is_what_is_left_after_the_correction():
    assert Contrast(0.1, 0.01, 0.2, 0.01, 0.05).is_significant
    assert not Contrast(0.1, 0.01, 0.2, 0.01, 0.06).is_significant
    assert not Contrast(0.1, 0.01, 0.2, 0.01).is_significant  # not corrected yet


def test_the_error_of_equal_classes_is_that_of_a_paired_t_test():
    rng = np.random.default_rng(0)
    before, after = rng.random((2, 1, CLASSES * EACH))
    units = np.arange(CLASSES * EACH) // EACH
    error, freedom = standard_error(before, after, units)
    by_class = (after - before).reshape(CLASSES, EACH).mean(1)
    expected = ttest_1samp(by_class, 0)
    assert (after - before).mean() / error == pytest.approx(expected.statistic)
    assert freedom == pytest.approx(expected.df)


def test_the_error_grows_with_the_deviation_of_seeds():
    units = np.arange(CLASSES * EACH) // EACH
    same = np.full((3, len(units)), 0.5)
    apart = same + np.array([[-0.1], [0.0], [0.1]])
    assert standard_error(same, same, units) == (0.0, 1.0)
    error, freedom = standard_error(same, apart, units)
    assert error == pytest.approx(0.1 / np.sqrt(3)) and freedom == pytest.approx(2)


def test_one_seed_has_no_deviation():
    values = np.random.default_rng(0).random((1, CLASSES * EACH))
    figure = figure_of(scores_of(values), "map@r")
    assert figure.deviation is None and figure.by_seed == [pytest.approx(values.mean() / 2)]
    assert figure.low < figure.mean < figure.high
    assert contrast(scores_of(values), scores_of(values + 0.1), "recall@1").p < 0.01


def test_mean_and_deviation_over_seeds():
    values = np.repeat([[0.4], [0.5], [0.6]], CLASSES * EACH, 1)
    figure = figure_of(scores_of(values), "recall@1")
    assert figure.mean == pytest.approx(0.5) and figure.deviation == pytest.approx(0.1)
    assert figure.by_seed == pytest.approx([0.4, 0.5, 0.6])


def test_of_few_classes_nothing_is_certain():
    first, second = np.zeros((3, 5 * EACH)), np.ones((3, 5 * EACH))
    figure = figure_of(scores_of(first), "recall@1")
    assert figure.low is None and figure.high is None
    found = contrast(scores_of(first), scores_of(second), "recall@1")
    assert found.low is None and found.high is None and found.p > 0.05
    assert found.difference == 1.0


def test_equal_scores_do_not_differ():
    scores = scores_of(np.random.default_rng(0).random((3, CLASSES * EACH)))
    same = scores_of(np.full((3, CLASSES * EACH), 0.5))
    assert contrast(same, same, "recall@1").p == 1.0
    found = contrast(scores, scores, "recall@1")
    assert found.difference == 0 and found.p == 1.0


def test_images_of_a_closed_set_are_drawn_each_alone():
    """The queries of a class count as many: the interval is narrower than one over classes."""
    rng = np.random.default_rng(0)
    effects = np.repeat(rng.normal(0.5, 0.2, 10), 30)
    values = (rng.random((2, 300)) < effects).astype(float)
    classes = scores_of(values, np.repeat(np.arange(10), 30))
    images = scores_of(values, np.arange(300))
    widths = [f.high - f.low for f in (figure_of(s, "recall@1") for s in (classes, images))]
    assert widths[0] > 1.5 * widths[1]


def test_rows_of_other_queries_are_not_compared():
    first = scores_of(np.ones((1, 12)))
    second = Scores(first.rows + 1, first.units, first.values)
    with pytest.raises(ValueError, match="tested on other queries: train them again"):
        contrast(first, second, "recall@1")
