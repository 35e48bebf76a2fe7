"""Verification scores against scikit-learn's ROC curve of all pairs, in float64."""

import tracemalloc

import numpy as np
import pytest
import torch
from oracle import make, unit

from metric_learning.retrieval import verification
from metric_learning.retrieval.counting import by_torch
from metric_learning.retrieval.counting.bins import HALF, NUM_BINS, Bins
from metric_learning.retrieval.counting.cpu import tiles
from metric_learning.retrieval.counting.thresholds import Share
from metric_learning.retrieval.inputs import find_own_rows
from metric_learning.retrieval.verification import (
    SimilarityHistograms,
    score_histograms,
    similarity_histograms,
    verification_scores,
)

metrics = pytest.importorskip("sklearn.metrics")

KINDS = [
    "random",
    "clustered",
    "tied",
    "duplicated",
    "collapsed",
    "large classes",
    "one image each",
]


def all_pairs(queries, labels, gallery=None, gallery_labels=None):
    """Cosines (M,) of all pairs, equal where they tie, and whether they are of one class."""
    if gallery is None:
        i, j = np.triu_indices(len(queries), k=1)
        cosines, is_positive = (unit(queries) @ unit(queries).T)[i, j], labels[i] == labels[j]
    else:
        cosines = (unit(queries) @ unit(gallery).T).ravel()
        is_positive = (labels[:, None] == gallery_labels).ravel()
    return np.round(cosines, 12), is_positive


def binned(cosines):
    """Cosines at the resolution of the histograms."""
    return np.rint(cosines * 2**15) / 2**15


def expected_scores(cosines, is_positive):
    far, tar, _ = metrics.roc_curve(is_positive, cosines, drop_intermediate=False)
    excess = far - (1 - tar)
    after = int(np.argmax(excess >= 0))  # the equal error rate lies on the segment up to here
    share = -excess[after - 1] / (excess[after] - excess[after - 1])
    negatives = int((~is_positive).sum())
    tars = {
        f"tar@far={rate}": tar[far * negatives <= rate * negatives + 1e-6].max()
        for rate in (0.1, 0.01, 0.001, 0.0001)
        if rate * negatives >= 10 - 1e-6
    }
    return {
        "auc": metrics.roc_auc_score(is_positive, cosines),
        "eer": far[after - 1] + share * (far[after] - far[after - 1]),
        **tars,
        "positive_pairs": int(is_positive.sum()),
        "negative_pairs": negatives,
    }


def assert_equal_scores(found, cosines, is_positive):
    """Compare with the scores of the binned cosines; a negative at an edge may be rounded over."""
    expected = expected_scores(binned(cosines), is_positive)
    rates = [name.removeprefix("tar@") for name in expected if name.startswith("tar")]
    assert found.keys() == expected.keys() | {f"threshold@{rate}" for rate in rates}
    one_pair = 1.001 / expected["positive_pairs"]
    tolerances = {"auc": 1e-6, "eer": one_pair} | {
        name: one_pair for name in expected if name.startswith("tar")
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=tolerances.get(name, 0)), name
    for rate in rates:
        is_accepted = cosines >= found[f"threshold@{rate}"]
        share = is_accepted[is_positive].mean()
        assert share == pytest.approx(found[f"tar@{rate}"], abs=2 * one_pair), rate


def split_in_two(rows, labels):
    third = len(rows) // 3
    return rows[:third], labels[:third], rows[third:], labels[third:]


def run(function, queries, labels, gallery=None, gallery_labels=None, **options):
    options |= {"gallery_embeddings": gallery, "gallery_labels": gallery_labels}
    return function(queries, labels, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "d"), [(4, 2), (40, 3), (300, 16)])
@pytest.mark.parametrize("is_split", [False, True])
def test_scores_equal_scikit_learn(kind, n, d, is_split, device):
    rows, labels = make(kind, n, d)
    labels[-2:] = labels[0], labels[0] + 1  # pairs of both sorts, also across the split
    data = split_in_two(rows, labels) if is_split else (rows, labels)
    found = run(verification_scores, *data, device=device)
    assert_equal_scores(found, *all_pairs(*data))


@pytest.mark.parametrize("kind", ["clustered", "tied", "duplicated"])
@pytest.mark.parametrize("at_once", [7, 2**20])
def test_a_query_that_the_gallery_holds_is_no_pair_with_itself(kind, at_once, device, monkeypatch):
    monkeypatch.setattr(verification, "PAIRS_AT_ONCE", at_once)
    rows, labels = make(kind, 60, 8)
    is_query, is_gallery = np.arange(60) % 2 == 0, np.arange(60) % 3 > 0
    data = rows[is_query], labels[is_query], rows[is_gallery], labels[is_gallery]
    own_rows = find_own_rows(is_query, is_gallery)
    found = run(verification_scores, *data, device=device, own_rows=own_rows)
    cosines, is_positive = all_pairs(*data)
    numbers = np.arange(60)
    is_other = (numbers[is_query][:, None] != numbers[is_gallery]).ravel()
    assert found["positive_pairs"] + found["negative_pairs"] == 30 * 40 - 20
    assert_equal_scores(found, cosines[is_other], is_positive[is_other])


@pytest.mark.parametrize("kind", ["random", "tied", "large classes"])
@pytest.mark.parametrize("is_split", [False, True])
@pytest.mark.parametrize("threads", [1, 3])
def test_every_pair_is_counted_once_in_small_tiles(kind, is_split, threads, device, monkeypatch):
    monkeypatch.setattr(tiles, "TILE", 16)
    monkeypatch.setattr(tiles, "BLOCK", 32)
    monkeypatch.setattr(tiles, "num_cores", lambda: threads)
    monkeypatch.setattr(by_torch, "TILE_ROWS", 7)
    monkeypatch.setitem(by_torch.TILE_ELEMENTS, "cpu", 100)
    monkeypatch.setattr(verification, "PAIRS_AT_ONCE", 11)
    rows, labels = make(kind, 150, 5)
    data = split_in_two(rows, labels) if is_split else (rows, labels)
    found = run(similarity_histograms, *data, device=device)
    cosines, is_positive = all_pairs(*data)
    for counts, own in ((found.positives, is_positive), (found.negatives, ~is_positive)):
        expected = np.histogram(cosines[own], found.edges)[0]
        moved = np.abs(np.cumsum(counts - expected))  # over an edge, by rounding
        assert counts.sum() == own.sum()
        assert moved.max() <= 1 and moved.sum() <= 0.01 * own.sum()


@pytest.mark.parametrize(
    ("lowest", "highest"), [(0, 0), (NUM_BINS - 1, NUM_BINS - 1), (7, 8), (60, 62), (500, 1523)]
)
def test_finer_bins_cover_what_was_counted(lowest, highest):
    bins = Bins()
    counts = np.zeros(NUM_BINS, np.int64)
    counts[[lowest, highest]] = 1
    finer = bins.finer(counts)
    assert finer.edges[0] <= bins.edges[lowest] and bins.edges[highest + 1] <= finer.edges[-1]
    assert finer.width <= bins.width / 2**5
    places = (np.array([lowest, highest]) / HALF - 1 - finer.centre) / finer.width
    assert np.array_equal(places, np.rint(places))


def test_bins_stay_where_many_are_occupied():
    counts = np.zeros(NUM_BINS, np.int64)
    counts[[500, 1524]] = 1
    assert Bins().finer(counts) is None


def test_bins_are_centred_so_that_equal_similarities_tie():
    rows = np.array([[1, 1e-4], [1, 0], [1, 0], [-3, 0], [0, 0]], np.float32)
    found = similarity_histograms(rows, np.array([0, 1, 1, 0, 0]))
    assert len(found.edges) == len(found.centres) + 1 == 2**16 + 2
    centres = np.arange(-(2**15), 2**15 + 1) / 2**15
    assert np.array_equal(found.centres, centres)
    assert dict(zip(centres, found.positives, strict=True)) == {
        **dict.fromkeys(centres, 0),
        **{-1: 1, 0: 2, 1: 1},
    }
    assert found.negatives[[0, 2**15, -1]].tolist() == [2, 2, 2]


@pytest.mark.parametrize("kind", ["random", "clustered", "tied"])
def test_bins_are_fine_enough(kind, device):
    rows, labels = make(kind, 600, 12)
    cosines, is_positive = all_pairs(rows, labels)
    found = verification_scores(rows, labels, device=device)
    expected = expected_scores(cosines, is_positive)
    assert found["auc"] == pytest.approx(expected["auc"], abs=1e-6)
    one_pair = 1.001 / found["positive_pairs"]
    for name in expected:
        assert found[name] == pytest.approx(expected[name], abs=one_pair), name


@pytest.mark.parametrize("spread", [1e-1, 1e-2])
@pytest.mark.parametrize("is_split", [False, True])
def test_similarities_in_a_narrow_range_get_finer_bins(spread, is_split, device, monkeypatch):
    monkeypatch.setattr(tiles, "TILE", 48)
    monkeypatch.setattr(tiles, "BLOCK", 96)
    rows, labels = make("clustered", 300, 12)
    rows = 10 + spread * rows
    data = split_in_two(rows, labels) if is_split else (rows, labels)
    histograms = run(similarity_histograms, *data, device=device)
    cosines, is_positive = all_pairs(*data)
    assert histograms.edges[0] < cosines.min() and cosines.max() < histograms.edges[-1]
    num_occupied = np.count_nonzero(histograms.positives + histograms.negatives)
    assert num_occupied > min(1000, len(cosines) / 10)
    found, expected = score_histograms(histograms), expected_scores(cosines, is_positive)
    scores = {name: value for name, value in found.items() if not name.startswith("threshold")}
    assert scores == pytest.approx(expected, abs=1.001 / found["positive_pairs"])
    assert found["auc"] == pytest.approx(expected["auc"], abs=1e-5)


@pytest.mark.parametrize("value", [0, 1])
def test_a_collapsed_model_is_as_good_as_chance(value, device):
    found = verification_scores(np.full((40, 3), value), np.arange(40) // 4, device=device)
    assert found.pop("threshold@far=0.1") > value  # below which all pairs would be accepted
    assert found == {
        "auc": 0.5,
        "eer": 0.5,
        "tar@far=0.1": 0,  # fewer than 10 of 720 negative pairs would be accepted at 0.01
        "positive_pairs": 60,
        "negative_pairs": 720,
    }


def test_separated_classes_are_perfect(device):
    rows = np.repeat(np.eye(6), 10, axis=0)
    found = verification_scores(rows, np.arange(60) // 10, device=device)
    assert (found["auc"], found["eer"], found["tar@far=0.01"]) == (1, 0, 1)


def test_auc_depends_on_the_order_alone():
    """A BLAS that rounds otherwise moves pairs to a neighbouring bin: not a digit may move."""
    counts, edges = np.random.default_rng(0).integers(1, 99, (2, 99)), np.linspace(-1, 1, 100)
    bins = np.arange(99) % 3
    positives, negatives = counts[0] * (bins == 0), counts[1] * (bins == 1)
    moved = negatives // 2
    beside = negatives - moved + np.roll(moved, 1)
    scores = score_histograms(SimilarityHistograms(edges, positives, negatives))
    moved = score_histograms(SimilarityHistograms(edges, positives, beside))
    assert {name: value for name, value in moved.items() if "threshold" not in name} == {
        name: value for name, value in scores.items() if "threshold" not in name
    }
    assert 0.4 < scores["auc"] < 0.6


@pytest.mark.parametrize(("negatives", "is_given"), [(999, False), (1000, True)])
def test_rates_need_ten_accepted_pairs(negatives, is_given):
    counts = np.array([[0, 3, 0], [negatives - 10, 10, 0]])
    found = score_histograms(SimilarityHistograms(np.linspace(-1, 1, 4), *counts))
    assert ("tar@far=0.01" in found) == is_given
    assert "tar@far=0.1" in found and "tar@far=0.001" not in found
    if is_given:
        assert found["tar@far=0.01"] == 1


@pytest.mark.parametrize("is_split", [False, True])
def test_shares_of_the_work_add_up(is_split, device, monkeypatch):
    monkeypatch.setattr(tiles, "TILE", 48)
    monkeypatch.setattr(tiles, "BLOCK", 48)
    monkeypatch.setattr(by_torch, "TILE_ROWS", 48)
    monkeypatch.setattr(verification, "PAIRS_AT_ONCE", 50)
    rows, labels = make("clustered", 400, 8)
    data = split_in_two(rows, labels) if is_split else (rows, labels)
    whole = run(similarity_histograms, *data, device=device)
    expected = np.stack([whole.positives, whole.negatives])
    parts = []

    def keep(array):
        parts.append(array)
        return expected

    for rank in range(3):
        shared = run(similarity_histograms, *data, device=device, share=Share(rank, 3, keep))
        assert np.array_equal(shared.negatives, whole.negatives)
    assert np.array_equal(sum(parts), expected)
    assert all(0 < part.sum() < expected.sum() for part in parts)


def test_tensors_and_memory_maps_are_taken(tmp_path, device):
    rows, labels = make("clustered", 60, 8)
    np.save(tmp_path / "rows.npy", rows)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    expected = verification_scores(rows, labels, device=device)
    assert verification_scores(torch.tensor(rows), torch.tensor(labels), device=device) == expected
    assert verification_scores(mapped, labels, device=device) == expected


@pytest.mark.parametrize("num_classes", [2, 2000])
def test_no_matrix_of_all_pairs_exists(num_classes, monkeypatch):
    monkeypatch.setattr(verification, "PAIRS_AT_ONCE", 2**14)
    rows, _ = make("random", 4000, 2)
    labels = np.arange(len(rows)) % num_classes
    verification_scores(rows[:100], labels[:100] % 2)  # what is compiled once
    tracemalloc.start()
    verification_scores(rows, labels)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < len(rows) ** 2 / 2  # one byte for each pair would be more


def test_wrong_arguments_are_errors():
    rows, labels = make("random", 10, 4)
    with pytest.raises(ValueError, match="none of the 45 pairs is of one class"):
        verification_scores(rows, np.arange(10))
    with pytest.raises(ValueError, match="all 45 pairs are of one class"):
        verification_scores(rows, np.zeros(10, int))
    with pytest.raises(ValueError, match="none of the 0 pairs"):
        verification_scores(rows[:1], labels[:1])
    with pytest.raises(ValueError, match="none of the 100 pairs"):
        verification_scores(rows, labels, gallery_embeddings=rows, gallery_labels=labels + 100)
    with pytest.raises(ValueError, match="together"):
        verification_scores(rows, labels, gallery_labels=labels)
    with pytest.raises(ValueError, match="4 dimensions, the gallery 3"):
        verification_scores(rows, labels, gallery_embeddings=rows[:, :3], gallery_labels=labels)
    with pytest.raises(ValueError, match="10 labels"):
        verification_scores(rows, labels[:9])
    rows[3, 1] = np.nan
    with pytest.raises(ValueError, match="NaN or infinity, first in row 3"):
        verification_scores(rows, labels)
