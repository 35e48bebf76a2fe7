"""Exact retrieval metrics against brute force in float64, and against the reference."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from oracle import make, oracle_ranks

from metric_learning.retrieval import evaluate
from metric_learning.retrieval.metrics import chance_recall, chance_scores

FIXTURES = sorted((Path(__file__).parent.parent / "fixtures").glob("recall_*.npz"))


def oracle_scores(ks, precision_ks, *data):
    """The metrics by their definitions, query after query."""
    rows = []
    for ranks, _ in oracle_ranks(*data).values():
        total = len(ranks)
        precisions = [(n + 1) / rank for n, rank in enumerate(ranks)]
        row = {f"recall@{k}": float(ranks[0] <= k) for k in ks}
        row |= {f"precision@{k}": sum(rank <= k for rank in ranks) / k for k in precision_ks}
        row["map@r"] = (
            sum(p for p, rank in zip(precisions, ranks, strict=True) if rank <= total) / total
        )
        row["r_precision"] = sum(rank <= total for rank in ranks) / total
        row["map"] = sum(precisions) / total
        row["mrr"] = 1 / ranks[0]
        row["minp"] = total / ranks[-1]
        rows.append(row)
    num_queries = len(data[0])
    return {
        **{name: float(np.mean([row[name] for row in rows])) for name in rows[0]},
        "queries": len(rows),
        "queries_without_positive": num_queries - len(rows),
        "gallery": len(data[2]) if len(data) > 2 else num_queries,
    }


@pytest.mark.parametrize("kind", ["random", "clustered", "tied", "duplicated", "large classes"])
@pytest.mark.parametrize(("n", "d"), [(6, 1), (40, 3), (300, 16)])
def test_self_retrieval_equals_the_definitions(kind, n, d):
    rows, labels = make(kind, n, d)
    ks, precision_ks = (1, 2, 5, min(10, n), n), (1, 3, n)
    expected = oracle_scores(ks, precision_ks, rows, labels)
    assert evaluate(rows, labels, ks, precision_ks=precision_ks) == pytest.approx(
        expected, rel=1e-12
    )


@pytest.mark.parametrize("kind", ["random", "clustered", "tied"])
def test_query_gallery_equals_the_definitions(kind):
    rows, labels = make(kind, 120, 8)
    query, gallery = slice(0, 40), slice(40, 120)
    data = rows[query], labels[query], rows[gallery], labels[gallery]
    found = evaluate(
        torch.tensor(data[0]),
        torch.tensor(data[1]),
        (1, 10),
        gallery_embeddings=torch.tensor(data[2]),
        gallery_labels=torch.tensor(data[3]),
    )
    assert found == pytest.approx(oracle_scores((1, 10), (), *data), rel=1e-12)


def test_ranks_counted_in_pieces_give_the_same_scores(monkeypatch):
    rows, labels = make("tied", 200, 4)
    whole = [evaluate(rows, labels, ties=ties) for ties in ("pessimistic", "expected")]
    monkeypatch.setattr("metric_learning.retrieval.ranks.LEAST_BYTES", 0)
    assert [evaluate(rows, labels, ties=ties) for ties in ("pessimistic", "expected")] == [
        pytest.approx(scores, rel=1e-12) for scores in whole
    ]


def test_agrees_with_pytorch_metric_learning():
    """On data without ties, where the order of equal similarities cannot matter."""
    accuracy = pytest.importorskip("pytorch_metric_learning.utils.accuracy_calculator")
    rows, labels = make("clustered", 600, 32)
    unit = torch.nn.functional.normalize(torch.tensor(rows), dim=1)
    calculator = accuracy.AccuracyCalculator(
        include=("precision_at_1", "mean_average_precision_at_r", "r_precision"),
        k="max_bin_count",
    )
    theirs = calculator.get_accuracy(unit, torch.tensor(labels))
    ours = evaluate(rows, labels, (1,))
    assert ours["recall@1"] == theirs["precision_at_1"]
    assert ours["map@r"] == pytest.approx(theirs["mean_average_precision_at_r"], rel=1e-12)
    assert ours["r_precision"] == pytest.approx(theirs["r_precision"], rel=1e-12)


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_recall_is_the_reference_s(path):
    data = np.load(path)
    found = evaluate(data["x"], data["y"], data["k"].tolist())
    assert [found[f"recall@{k}"] for k in data["k"]] == data["recall"].tolist()


def test_collapsed_model_scores_zero():
    found = evaluate(np.ones((20, 4), np.float32), np.arange(20) // 2)
    assert found["recall@1"] == found["map@r"] == 0.0


def test_zero_embeddings_are_at_cosine_zero():
    rows = np.array([[0, 0], [0, 0], [1, 0], [1, 0]], np.float32)
    assert evaluate(rows, [0, 0, 1, 1], (1, 3))["recall@1"] == 0.5


def test_duplicates_of_a_query_are_ordinary_images():
    rows = np.array([[1, 0], [1, 0], [0.9, 0.1]], np.float32)
    found = evaluate(rows, [0, 1, 0], (1, 2))
    assert found["recall@1"] == 0.0 and found["recall@2"] == 1.0


def test_queries_without_a_positive_are_counted():
    rows, labels = make("random", 10, 4)
    labels[:] = [0, 0, 1, 2, 3, 3, 3, 4, 5, 5]
    found = evaluate(rows, labels)
    assert (found["queries"], found["queries_without_positive"]) == (7, 3)


def test_half_precision_embeddings_are_taken_as_they_are():
    rows, labels = make("clustered", 60, 8)
    half = torch.tensor(rows).half()
    assert evaluate(half, labels) == evaluate(half.double(), labels)


def test_bfloat16_and_reversed_embeddings_are_taken():
    rows, labels = make("clustered", 60, 8)
    coarse = torch.tensor(rows).bfloat16()
    assert evaluate(coarse, labels) == evaluate(coarse.float(), labels)
    for dtype in (np.float32, np.float64):
        turned = evaluate(rows.astype(dtype)[::-1], labels[::-1])
        assert turned == pytest.approx(evaluate(rows.astype(dtype), labels))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_embeddings_that_are_not_finite_are_an_error(value):
    rows, labels = make("random", 10, 4)
    rows[3, 1] = value
    with pytest.raises(ValueError, match="NaN or infinity, first in row 3"):
        evaluate(rows, labels)


def test_wrong_arguments_are_errors():
    rows, labels = make("random", 10, 4)
    with pytest.raises(ValueError, match="10 labels"):
        evaluate(rows, labels[:9])
    with pytest.raises(ValueError, match=r"shape \(N, D\)"):
        evaluate(rows[:0], labels[:0])
    for ks in ((0, 1), (1, 11)):
        with pytest.raises(ValueError, match=rf"1 to 10, .* found {ks[ks[0]]}$"):
            evaluate(rows, labels, ks)
    with pytest.raises(ValueError, match=r"1 to 10, .* found 20"):
        evaluate(rows, labels, precision_ks=(5, 20))
    with pytest.raises(ValueError, match="nothing to retrieve"):
        evaluate(rows, np.arange(10))
    with pytest.raises(ValueError, match="one of pessimistic, expected, found 'best'"):
        evaluate(rows, labels, ties="best")
    with pytest.raises(ValueError, match="every K to be an integer"):
        evaluate(rows, labels, (1.5,))
    with pytest.raises(ValueError, match="integer labels"):
        evaluate(rows, labels / 2)
    with pytest.raises(ValueError, match="together"):
        evaluate(rows, labels, gallery_embeddings=rows)
    with pytest.raises(ValueError, match="4 dimensions, the gallery 3"):
        evaluate(rows, labels, gallery_embeddings=rows[:, :3], gallery_labels=labels)


def brute_chance(labels, k, gallery=None):
    """Recall@K over all sets of K images that a query can find."""
    rows = []
    for row, label in enumerate(labels):
        others = [n for n, other in enumerate(labels if gallery is None else gallery)]
        if gallery is None:
            others.remove(row)
        is_right = [(labels if gallery is None else gallery)[n] == label for n in others]
        if any(is_right):
            draws = list(combinations(is_right, k))
            rows.append(np.mean([any(draw) for draw in draws]))
    return np.mean(rows)


@pytest.mark.parametrize("k", [1, 2, 4, 6])
def test_chance_is_the_mean_over_all_draws(k):
    labels = np.array([3, 3, 3, 5, 5, 9, 1])
    found = chance_recall(labels, [k])
    assert found == {f"recall@{k}_chance": pytest.approx(brute_chance(labels, k), rel=1e-12)}
    gallery = np.array([5, 3, 5, 7, 7, 5])
    found = chance_recall(labels, [k], gallery)[f"recall@{k}_chance"]
    assert found == pytest.approx(brute_chance(labels, k, gallery), rel=1e-12)


@pytest.mark.parametrize("sizes", [(1, 1), (3, 5), (4, 0), (1, 6)])
def test_other_chances_are_the_means_over_all_orders(sizes):
    num_right, num_wrong = sizes
    expected: dict[str, list[float]] = {"map@r": [], "r_precision": [], "map": [], "mrr": []}
    for right in combinations(range(num_right + num_wrong), num_right):
        ranks = np.array(right) + 1
        precisions = np.arange(1, num_right + 1) / ranks
        is_early = ranks <= num_right
        expected["map@r"].append((precisions * is_early).sum() / num_right)
        expected["r_precision"].append(is_early.mean())
        expected["map"].append(precisions.mean())
        expected["mrr"].append(1 / ranks[0])
    means = {name: pytest.approx(np.mean(values)) for name, values in expected.items()}
    gallery = np.array([1] * num_right + [2] * num_wrong)
    assert chance_scores(np.array([1, 1, 7]), gallery) == means


def test_other_chances_are_those_of_random_embeddings_and_0_of_none():
    labels = np.random.default_rng(0).integers(0, 40, 1500)
    found = evaluate(np.random.default_rng(1).normal(size=(1500, 16)), labels)
    for name, chance in chance_scores(labels).items():
        assert chance == pytest.approx(found[name], rel=0.2, abs=0.005), name
    assert set(chance_scores(np.arange(4)).values()) == {0.0}


def test_chance_of_many_images_is_that_of_random_embeddings():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 40, 1500)
    found = evaluate(rng.normal(size=(1500, 8)), labels, (1, 10))
    chance = chance_recall(labels, (1, 10))
    for name in ("recall@1", "recall@10"):
        assert chance[f"{name}_chance"] == pytest.approx(found[name], abs=0.03)
    assert chance_recall(np.arange(4), (1,)) == {"recall@1_chance": 0.0}
    products = np.repeat(np.arange(11_000), 6)
    assert chance_recall(products, (1,))["recall@1_chance"] == pytest.approx(5 / 65_999, rel=1e-9)


def test_chance_leaves_a_query_out_of_its_own_gallery():
    labels = np.array([0, 0, 0, 1, 1, 2])
    queries, gallery = slice(0, 4), slice(1, 6)  # three of the four queries are searched too
    is_in_gallery = np.array([False, True, True, True])
    found = chance_recall(labels[queries], [1], labels[gallery], is_in_gallery)
    assert found["recall@1_chance"] == pytest.approx(np.mean([2 / 5, 1 / 4, 1 / 4, 1 / 4]))
