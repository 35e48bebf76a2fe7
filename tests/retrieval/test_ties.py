"""Expected scores against the mean over all orders of what ties, in exact fractions."""

from fractions import Fraction
from itertools import combinations, product

import numpy as np
import pytest

from metric_learning.retrieval import evaluate
from metric_learning.retrieval.ranks import Ranks
from metric_learning.retrieval.scores import score_ranks
from metric_learning.retrieval.ties import expected_scores

KS = (1, 2, 3, 5, 40)
PRECISION_KS = (1, 3, 7, 40)

# Levels of equal similarity, best first: (positives, negatives) of each.
QUERIES = {
    "one_group": [(2, 3)],
    "one_positive": [(1, 6)],
    "alternating": [(1, 0), (0, 2), (1, 0), (0, 1)],
    "ties_after_negatives": [(0, 3), (2, 2), (0, 4)],
    "tied_positives_only": [(3, 0), (0, 2)],
    "two_groups": [(0, 1), (2, 2), (0, 1), (1, 3)],
    "group_between_single_positives": [(1, 0), (0, 1), (2, 1), (1, 0), (0, 2), (1, 0)],
    "neighbouring_groups": [(1, 2), (2, 1), (1, 1)],
    "late_group": [(0, 9), (3, 2)],
}


def ranks_of(levels):
    """Ranks (untied, tied) of the positives of a query, ascending."""
    untied, tied, positives, negatives = [], [], 0, 0
    for own_positives, own_negatives in levels:
        for _ in range(own_positives):
            positives += 1
            untied.append(positives + negatives)
            tied.append(positives + negatives + own_negatives)
        negatives += own_negatives
    return np.array(untied), np.array(tied)


def scores_of_order(is_positive):
    """Scores of one ranking (a list of bool) by their definitions."""
    places = [place for place, positive in enumerate(is_positive, start=1) if positive]
    total = len(places)
    precisions = [Fraction(number, place) for number, place in enumerate(places, start=1)]
    within = [number for number, place in enumerate(places) if place <= total]
    return {
        **{f"recall@{k}": Fraction(any(is_positive[:k])) for k in KS},
        **{f"precision@{k}": Fraction(sum(is_positive[:k]), k) for k in PRECISION_KS},
        "r_precision": Fraction(len(within), total),
        "map@r": sum((precisions[number] for number in within), Fraction(0)) / total,
        "map": sum(precisions, Fraction(0)) / total,
        "mrr": Fraction(1, places[0]),
        "minp": Fraction(total, places[-1]),
    }


def mean_over_orders(levels):
    orders = []
    for positives, negatives in levels:
        places = range(positives + negatives)
        orders.append(
            [[place in chosen for place in places] for chosen in combinations(places, positives)]
        )
    scores = [scores_of_order(sum(order, [])) for order in product(*orders)]
    return {name: float(sum(score[name] for score in scores) / len(scores)) for name in scores[0]}


@pytest.mark.parametrize("levels", QUERIES.values(), ids=QUERIES)
def test_expectation_is_the_mean_over_all_orders(levels):
    found = expected_scores(*ranks_of(levels), KS, PRECISION_KS)
    assert found == pytest.approx(mean_over_orders(levels), rel=1e-13)


@pytest.mark.parametrize("seed", range(20))
def test_random_ties_are_the_mean_over_all_orders(seed):
    rng = np.random.default_rng(seed)
    levels = [(int(rng.integers(0, 3)), int(rng.integers(0, 4))) for _ in range(4)] + [(1, 1)]
    found = expected_scores(*ranks_of(levels), KS, PRECISION_KS)
    assert found == pytest.approx(mean_over_orders(levels), rel=1e-13)


def test_positives_that_share_a_negative_form_one_group():
    # A negative that ties with both positives, which do not tie with each other's other negatives:
    # the tolerance of equality makes such chains.
    untied, tied = np.array([1, 3]), np.array([3, 5])
    found = expected_scores(untied, tied, KS, PRECISION_KS)
    assert found == pytest.approx(mean_over_orders([(2, 3)]), rel=1e-13)


def test_without_ties_the_expectation_is_the_score():
    rng = np.random.default_rng(0)
    for total in (1, 2, 10, 300):
        ranks = np.sort(rng.choice(np.arange(1, 2000), total, replace=False))
        single = Ranks(ranks, ranks, np.array([0, total]), np.array([0]))
        exact = score_ranks([single], np.zeros(1, np.int64), 2000, KS, PRECISION_KS).columns
        found = expected_scores(ranks, ranks, KS, PRECISION_KS)
        assert found == pytest.approx({name: values[0] for name, values in exact.items()}, 1e-12)


def test_a_large_group_agrees_with_sampled_orders():
    positives, negatives = 40, 3000
    found = expected_scores(*ranks_of([(0, 5), (positives, negatives)]), (1, 50), (50,))
    rng = np.random.default_rng(0)
    places = np.arange(6, 6 + positives + negatives)
    draws = np.sort([rng.choice(places, positives, replace=False) for _ in range(2000)], axis=1)
    precisions = np.arange(1, positives + 1) / draws
    sampled = {
        "recall@50": (draws[:, 0] <= 50).astype(float),
        "precision@50": (draws <= 50).sum(1) / 50,
        "map": precisions.mean(1),
        "mrr": 1 / draws[:, 0],
        "minp": positives / draws[:, -1],
    }
    for name, values in sampled.items():
        assert abs(found[name] - values.mean()) < 4 * values.std() / np.sqrt(len(values)), name
    assert found["recall@1"] == 0


@pytest.mark.parametrize("per_class", [2, 5])
def test_a_collapsed_model_scores_as_chance(per_class):
    labels = np.arange(60) // per_class
    found = evaluate(np.ones((60, 4), np.float32), labels, (1, 59), ties="expected")
    assert found["recall@1"] == pytest.approx((per_class - 1) / 59, rel=1e-12)
    assert found["r_precision"] == pytest.approx((per_class - 1) / 59, rel=1e-12)
    assert found["recall@59"] == 1


def test_the_order_of_the_images_does_not_change_expected_scores():
    rng = np.random.default_rng(0)
    rows, labels = rng.integers(-1, 2, (40, 3)).astype(np.float32), rng.integers(0, 8, 40)
    order = rng.permutation(40)
    found = evaluate(rows, labels, KS, precision_ks=PRECISION_KS, ties="expected")
    other = evaluate(rows[order], labels[order], KS, precision_ks=PRECISION_KS, ties="expected")
    assert found == pytest.approx(other, rel=1e-12)
    pessimistic = evaluate(rows, labels, KS, precision_ks=PRECISION_KS)
    assert all(found[name] >= pessimistic[name] - 1e-12 for name in found)
    assert found["map"] > pessimistic["map"]
