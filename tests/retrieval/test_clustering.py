"""Cluster scores against pair counts, entropies and another library's."""

import sys
from itertools import combinations
from math import log

import numpy as np
import pytest

from metric_learning.retrieval.clustering import cluster_scores, pair_f1

LIBRARIES = ["faiss", "scikit-learn"]


@pytest.fixture(params=LIBRARIES)
def library(request, monkeypatch):
    """Run the test with each k-means."""
    if request.param == "faiss":
        pytest.importorskip("faiss")
    else:
        monkeypatch.setitem(sys.modules, "faiss", None)
    return request.param


def make(num_classes=8, per_class=12, spread=0.3, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(num_classes), per_class))
    centres = rng.normal(size=(num_classes, 6))
    rows = centres[labels] + spread * rng.normal(size=(len(labels), 6))
    scales = rng.uniform(0.1, 10, (len(labels), 1))  # only the direction counts
    return (scales * rows).astype(np.float32), labels


def naive_f1(labels, clusters):
    pairs = list(combinations(range(len(labels)), 2))
    same_class = np.array([labels[i] == labels[j] for i, j in pairs])
    same_cluster = np.array([clusters[i] == clusters[j] for i, j in pairs])
    right = (same_class & same_cluster).sum()
    precision, recall = right / same_cluster.sum(), right / same_class.sum()
    return 2 * precision * recall / (precision + recall)


def naive_nmi(labels, clusters):
    def entropy(groups):
        return -sum(p * log(p) for p in np.unique(groups, return_counts=True)[1] / len(labels))

    joint = entropy(np.asarray(labels) * 1000 + np.asarray(clusters))
    information = entropy(labels) + entropy(clusters) - joint
    return information / ((entropy(labels) + entropy(clusters)) / 2)


@pytest.mark.parametrize("seed", range(5))
def test_f1_counts_pairs(seed):
    rng = np.random.default_rng(seed)
    labels, clusters = rng.integers(0, 5, 60), rng.integers(0, 9, 60)
    assert pair_f1(labels, clusters) == pytest.approx(naive_f1(labels, clusters), rel=1e-12)
    assert pair_f1(labels, labels + 7) == 1


def test_f1_without_a_pair_in_common():
    assert pair_f1(np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])) == 0
    assert pair_f1(np.array([0, 0, 1, 1]), np.arange(4)) == 0
    assert pair_f1(np.arange(4), np.arange(4)) == 1


def test_separated_classes_are_found(library):
    rows, labels = make(num_classes=2, spread=0.01)
    found = cluster_scores(rows, labels)
    assert found == {"nmi": 1, "ami": 1, "ari": 1, "f1": 1, "clusters": 2}


def clusters_of(rows, labels, monkeypatch, **options):
    """Scores and the clusters that they are of."""
    seen = []
    monkeypatch.setattr(
        "metric_learning.retrieval.clustering.adjusted_rand_score",
        lambda labels, clusters: seen.append(clusters) or 0,
    )
    return cluster_scores(rows, labels, **options), seen[0]


def nearest_centres(rows, clusters):
    """The cluster whose mean is nearest to each row on the unit sphere."""
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    centres = [unit[clusters == cluster].mean(0) for cluster in range(clusters.max() + 1)]
    return ((unit[:, None] - np.array(centres)) ** 2).sum(2).argmin(1)


def test_scores_are_those_of_the_clusters(library, monkeypatch):
    rows, labels = make(spread=1.0)
    found, clusters = clusters_of(rows, labels, monkeypatch, num_clusters=11)
    assert found["clusters"] == len(np.unique(clusters)) == 11
    assert found["nmi"] == pytest.approx(naive_nmi(labels, clusters), rel=1e-9)
    assert found["f1"] == pytest.approx(naive_f1(labels, clusters), rel=1e-12)
    assert np.array_equal(nearest_centres(rows, clusters), clusters)  # 20 iterations converge here


def test_every_image_counts_in_large_clusters(library, monkeypatch):
    rows = np.random.default_rng(0).normal(size=(3000, 3)).astype(np.float32)
    labels = np.arange(3000) % 3
    _, clusters = clusters_of(rows, labels, monkeypatch, iterations=200)
    assert np.array_equal(nearest_centres(rows, clusters), clusters)


def test_scores_agree_with_pytorch_metric_learning():
    module = pytest.importorskip("pytorch_metric_learning.utils.accuracy_calculator")
    pytest.importorskip("faiss")
    import torch

    rows, labels = make(spread=1.0)
    unit = torch.nn.functional.normalize(torch.tensor(rows))
    calculator = module.AccuracyCalculator(include=("NMI", "AMI"), device=torch.device("cpu"))
    theirs = calculator.get_accuracy(unit, torch.tensor(labels))
    found = [cluster_scores(rows, labels, seed=seed) for seed in range(10)]
    # Definitions are the same, first centres are not: theirs lies among ours.
    for name in ("nmi", "ami"):
        values = [scores[name] for scores in found]
        assert min(values) - 0.05 <= theirs[name.upper()] <= max(values) + 0.05


def test_seeds_are_repeatable(library):
    rows, labels = make(spread=1.5)
    assert cluster_scores(rows, labels, seed=3) == cluster_scores(rows, labels, seed=3)
    different = [cluster_scores(rows, labels, seed=seed)["nmi"] for seed in range(4)]
    assert len(set(different)) > 1


def test_chance_scores_are_near_zero(library):
    rng = np.random.default_rng(0)
    rows, labels = rng.normal(size=(600, 8)).astype(np.float32), rng.integers(0, 10, 600)
    found = cluster_scores(rows, labels)
    assert abs(found["ami"]) < 0.03 and abs(found["ari"]) < 0.03


@pytest.mark.parametrize(
    ("labels", "num_clusters", "expected"),
    [
        (np.zeros(12, np.int64), None, {"nmi": 1, "ami": 1, "ari": 1, "f1": 1, "clusters": 1}),
        (np.arange(12), None, {"nmi": 1, "ami": 1, "ari": 1, "f1": 1, "clusters": 12}),
        (np.arange(12), 1, {"nmi": 0, "ami": 0, "ari": 0, "f1": 0, "clusters": 1}),
        (np.arange(12) // 2, 12, {"ami": 0, "ari": 0, "f1": 0, "clusters": 12}),
    ],
    ids=["one class", "one image per class", "one cluster", "a cluster per image"],
)
def test_degenerate_classes_and_clusters(library, labels, num_clusters, expected):
    rows, _ = make(num_classes=12, per_class=1)
    found = cluster_scores(rows, labels, num_clusters=num_clusters)
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-9)


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_a_collapsed_model_has_finite_scores(library):
    for value in (0, 1):
        found = cluster_scores(np.full((20, 3), value, np.float32), np.arange(20) // 4)
        assert all(np.isfinite(score) for score in found.values())


def test_small_data_print_nothing(capfd):
    rows, labels = make()
    cluster_scores(rows, labels)
    assert capfd.readouterr() == ("", "")


def test_wrong_arguments_are_errors():
    rows, labels = make()
    with pytest.raises(ValueError, match="shape"):
        cluster_scores(rows, labels[1:])
    with pytest.raises(ValueError, match="shape"):
        cluster_scores(rows[:0], labels[:0])
    with pytest.raises(ValueError, match="1 to 96 clusters.*found 97"):
        cluster_scores(rows, labels, num_clusters=97)
    with pytest.raises(ValueError, match="iteration"):
        cluster_scores(rows, labels, iterations=0)
    rows[5, 2] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        cluster_scores(rows, labels)
