"""Open-set scores: agreement with loops that follow their definitions, and with scikit-learn."""

import itertools

import numpy as np
import pytest

from metric_learning.retrieval.open_set import (
    Answers,
    auroc,
    best_threshold,
    cross_f1,
    detection_rates,
    detection_thresholds,
    rates_at,
)
from metric_learning.retrieval.verification import score_histograms, similarity_histograms


@pytest.fixture(params=["random", "tied", "apart", "worthless"])
def answers(request):
    rng = np.random.default_rng(0)
    known, unknown = rng.normal(0.6, 0.2, 400), rng.normal(0.4, 0.2, 250)
    if request.param == "tied":
        known, unknown = known.round(1), unknown.round(1)
    if request.param == "apart":
        known = known + 5
    if request.param == "worthless":
        known, unknown = np.zeros(400), np.zeros(250)
    return Answers(known, rng.random(400) < 0.8, unknown)


def test_auroc_is_the_share_of_couples(answers):
    differences = answers.known[:, None] - answers.unknown
    expected = ((differences > 0) + 0.5 * (differences == 0)).mean()
    assert auroc(answers) == pytest.approx(expected, abs=1e-12)
    metrics = pytest.importorskip("sklearn.metrics")
    is_known = np.repeat([1, 0], [400, 250])
    cosines = np.concatenate([answers.known, answers.unknown])
    assert auroc(answers) == pytest.approx(metrics.roc_auc_score(is_known, cosines), abs=1e-12)


def test_detection_and_identification_is_at_the_lowest_threshold(answers):
    cosines = np.unique(np.concatenate([answers.known, answers.unknown, [np.inf]]))
    rates = detection_rates(answers)
    assert list(rates) == ["dir@far=0.1"]  # 1 % of 250 are fewer than 10
    allowed = [t for t in cosines if (answers.unknown >= t).mean() <= 0.1]
    expected = ((answers.known >= min(allowed)) & answers.is_right).mean()
    assert rates["dir@far=0.1"] == expected


def test_the_thresholds_of_detection_rates_give_these_rates(answers):
    rates, thresholds = detection_rates(answers), detection_thresholds(answers)
    assert list(thresholds) == ["dir_threshold@far=0.1"]
    found = rates_at(answers, thresholds["dir_threshold@far=0.1"])
    assert found["right"] == rates["dir@far=0.1"] and found["false_answers"] <= 0.1
    refused = np.sort(answers.unknown)[::-1][25]
    assert refused < thresholds["dir_threshold@far=0.1"]
    assert rates_at(answers, refused)["false_answers"] > 0.1


def naive_f1(answers, threshold):
    given = (answers.known >= threshold).sum() + (answers.unknown >= threshold).sum()
    right = (answers.is_right & (answers.known >= threshold)).sum()
    if right == 0:
        return 0.0
    precision, recall = right / given, right / len(answers.known)
    return 2 * precision * recall / (precision + recall)


def test_no_threshold_has_a_greater_f1_than_the_best(answers):
    best = best_threshold(answers)
    rates = rates_at(answers, best)
    assert rates["f1"] == pytest.approx(naive_f1(answers, best), abs=1e-12)
    cosines = np.concatenate([answers.known, answers.unknown])
    assert rates["f1"] == pytest.approx(max(naive_f1(answers, t) for t in cosines), abs=1e-12)
    assert rates["missed"] == (answers.known < best).mean()
    assert rates["false_answers"] == (answers.unknown >= best).mean()
    assert rates["right"] == ((answers.known >= best) & answers.is_right).mean()


def test_f1_is_measured_with_thresholds_of_the_other_classes(answers):
    rng = np.random.default_rng(1)
    halves = rng.integers(0, 2, 400), rng.integers(0, 2, 250)
    right = given = 0
    for half in (0, 1):
        parts = [answers.part(*(part == side for part in halves)) for side in (1 - half, half)]
        threshold = best_threshold(parts[0])
        right += ((parts[1].known >= threshold) & parts[1].is_right).sum()
        given += (parts[1].known >= threshold).sum() + (parts[1].unknown >= threshold).sum()
    assert cross_f1(answers, halves) == pytest.approx(2 * right / (given + 400), abs=1e-12)
    assert cross_f1(answers, (halves[0], np.zeros(250, int))) is None


def test_verification_names_the_cosine_of_each_far():
    rng = np.random.default_rng(0)
    rows, labels = rng.normal(size=(300, 6)), rng.integers(0, 30, 300)
    scores = score_histograms(similarity_histograms(rows, labels))
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    pairs = np.array(list(itertools.combinations(range(300), 2)))
    cosines = (unit[pairs[:, 0]] * unit[pairs[:, 1]]).sum(1)
    is_same = labels[pairs[:, 0]] == labels[pairs[:, 1]]
    for far in (0.1, 0.01, 0.001):
        threshold = scores[f"threshold@far={far}"]
        assert (cosines[~is_same] >= threshold).mean() <= far
        assert (cosines[~is_same] >= threshold - 2**-15).mean() > far
        assert scores[f"tar@far={far}"] == (cosines[is_same] >= threshold).mean()
    assert "threshold@far=0.0001" not in scores
