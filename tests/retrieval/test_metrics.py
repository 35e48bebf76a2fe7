"""Exact retrieval metrics against brute force in float64, and against the reference."""

from pathlib import Path

import numpy as np
import pytest
import torch

import retrieval.ranks
from retrieval import evaluate

FIXTURES = sorted((Path(__file__).parent.parent / "fixtures").glob("recall_*.npz"))


def oracle(queries, query_labels, gallery, gallery_labels, ks, own_rows=None):
    """Ranks by the definition, one pair after the other."""

    def unit(rows):
        rows = np.asarray(rows, np.float64)
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300)

    similarities = unit(queries) @ unit(gallery).T
    first, precisions, r_precisions = [], [], []
    for i, row in enumerate(similarities):
        others = [j for j in range(len(row)) if own_rows is None or j != own_rows[i]]
        positives = sorted(row[j] for j in others if gallery_labels[j] == query_labels[i])[::-1]
        negatives = np.array([row[j] for j in others if gallery_labels[j] != query_labels[i]])
        if not positives:
            continue
        ranks = [n + 1 + int((negatives >= s - 1e-9).sum()) for n, s in enumerate(positives)]
        total = len(ranks)
        first.append(ranks[0])
        within = [(n + 1) / rank for n, rank in enumerate(ranks) if rank <= total]
        precisions.append(sum(within) / total)
        r_precisions.append(len(within) / total)
    return {
        **{f"recall@{k}": float(np.mean(np.array(first) <= k)) for k in ks},
        "map@r": float(np.mean(precisions)),
        "r_precision": float(np.mean(r_precisions)),
        "queries": len(first),
        "queries_without_positive": len(queries) - len(first),
        "gallery": len(gallery),
    }


def make(kind, n, d, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, max(2, n // 4), n)
    rows = rng.normal(size=(n, d))
    if kind == "clustered":
        rows = 0.3 * rows + rng.normal(size=(labels.max() + 1, d))[labels]
    if kind == "tied":
        rows = rng.integers(-1, 2, size=(n, d))
    if kind == "duplicated":
        rows[n // 2 :] = rows[: n - n // 2]
    return rows.astype(np.float32), labels


@pytest.mark.parametrize("kind", ["random", "clustered", "tied", "duplicated"])
@pytest.mark.parametrize(("n", "d"), [(6, 1), (40, 3), (300, 16)])
@pytest.mark.parametrize("chunk_elements", [1, 1000, 2**24])
def test_self_retrieval_equals_brute_force(kind, n, d, chunk_elements, monkeypatch):
    monkeypatch.setattr(retrieval.ranks, "CHUNK_ELEMENTS", chunk_elements)
    rows, labels = make(kind, n, d)
    labels[:2] = 0
    ks = (1, 2, 5, 10, 100)
    expected = oracle(rows, labels, rows, labels, ks, own_rows=range(n))
    assert evaluate(rows, labels, ks) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", ["random", "clustered", "tied"])
def test_query_gallery_equals_brute_force(kind):
    rows, labels = make(kind, 120, 8)
    query, gallery = slice(0, 40), slice(40, 120)
    expected = oracle(rows[query], labels[query], rows[gallery], labels[gallery], (1, 10))
    found = evaluate(
        torch.tensor(rows[query]),
        torch.tensor(labels[query]),
        (1, 10),
        gallery_embeddings=torch.tensor(rows[gallery]),
        gallery_labels=torch.tensor(labels[gallery]),
    )
    assert found == pytest.approx(expected, rel=1e-12)


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
    with pytest.raises(ValueError, match="at least 1"):
        evaluate(rows, labels, (0, 1))
    with pytest.raises(ValueError, match="nothing to retrieve"):
        evaluate(rows, np.arange(10))
    with pytest.raises(ValueError, match="together"):
        evaluate(rows, labels, gallery_embeddings=rows)
    with pytest.raises(ValueError, match="4 dimensions, the gallery 3"):
        evaluate(rows, labels, gallery_embeddings=rows[:, :3], gallery_labels=labels)
