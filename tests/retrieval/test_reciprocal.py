"""k-reciprocal re-ranking against a dense transcription of the paper's formulas."""

import numpy as np
import pytest

from metric_learning.retrieval import reciprocal
from metric_learning.retrieval.inputs import find_own_rows
from metric_learning.retrieval.reciprocal import k_reciprocal_similarities


def naive_distances(rows, k1, k2, lambda_, strict=False):
    """All final distances (N, N), set by set; `strict` as published code."""
    rows = rows.astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    num = len(rows)
    d = np.array([[np.sum((rows[p] - rows[g]) ** 2) for g in range(num)] for p in range(num)])
    d = np.array([row / row.max() for row in d])
    order = [[p] + [g for g in np.argsort(d[p]).tolist() if g != p] for p in range(num)]

    def reciprocal(p, k):
        return {g for g in order[p][: k + 1] if p in order[g][: k + 1]}

    encodings = np.zeros((num, num))
    for p in range(num):
        members = reciprocal(p, k1)
        expanded = set(members)
        for q in members:
            candidate = reciprocal(q, round(k1 / 2))
            least = 2 * len(candidate) + (1 if strict else 0)
            if 3 * len(members & candidate) >= least:
                expanded |= candidate
        for g in expanded:
            encodings[p, g] = np.exp(-d[p, g])
        encodings[p] /= encodings[p].sum()
    encodings = np.array(
        [np.mean([encodings[g] for g in order[p][:k2]], axis=0) for p in range(num)]
    )
    jaccard = np.empty((num, num))
    for p in range(num):
        for g in range(num):
            both = np.stack([encodings[p], encodings[g]])
            jaccard[p, g] = 1 - both.min(0).sum() / both.max(0).sum()
    return (1 - lambda_) * jaccard + lambda_ * d


def make(n, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(6, 5))
    return (centres[rng.integers(0, 6, n)] + 0.5 * rng.normal(size=(n, 5))).astype(np.float32)


def gather(chunks, num_queries):
    """Stack the chunks, checking that they follow each other."""
    parts, done = [], 0
    for rows, similarities in chunks:
        assert rows.start == done and len(similarities) == rows.stop - rows.start
        assert similarities.dtype == np.float64
        done = rows.stop
        parts.append(similarities)
    assert done == num_queries
    return np.concatenate(parts)


@pytest.mark.parametrize(
    ("k1", "k2", "lambda_"),
    [(20, 6, 0.3), (7, 3, 0.3), (5, 5, 0.0), (1, 1, 0.5), (3, 1, 1.0), (49, 10, 0.1)],
)
@pytest.mark.parametrize("chunk_elements", [1, 1000, 2**24])
def test_self_retrieval_equals_the_paper(k1, k2, lambda_, chunk_elements, monkeypatch):
    monkeypatch.setattr(reciprocal, "CHUNK_ELEMENTS", chunk_elements)
    rows = make(50)
    found = gather(k_reciprocal_similarities(rows, None, k1, k2, lambda_), 50)
    np.testing.assert_allclose(-found, naive_distances(rows, k1, k2, lambda_), atol=1e-9)


@pytest.mark.parametrize(("k1", "k2", "lambda_"), [(20, 6, 0.3), (7, 3, 0.3), (5, 5, 0.0)])
def test_strictly_equals_published_code(k1, k2, lambda_):
    rows = make(50)
    found = gather(k_reciprocal_similarities(rows, None, k1, k2, lambda_, strict=True), 50)
    expected = naive_distances(rows, k1, k2, lambda_, strict=True)
    np.testing.assert_allclose(-found, expected, atol=1e-9)
    assert np.abs(expected - naive_distances(rows, k1, k2, lambda_)).max() > 1e-3


@pytest.mark.parametrize("chunk_elements", [1, 500, 2**24])
def test_queries_in_a_gallery_equal_the_paper(chunk_elements, monkeypatch):
    monkeypatch.setattr(reciprocal, "CHUNK_ELEMENTS", chunk_elements)
    rows = make(60, seed=1)
    found = gather(k_reciprocal_similarities(3 * rows[:15], rows[15:], 8, 4, 0.3), 15)
    np.testing.assert_allclose(-found, naive_distances(rows, 8, 4, 0.3)[:15, 15:], atol=1e-9)


@pytest.mark.parametrize("chunk_elements", [1, 500, 2**24])
def test_an_image_that_is_query_and_in_the_gallery_is_one_image(chunk_elements, monkeypatch):
    monkeypatch.setattr(reciprocal, "CHUNK_ELEMENTS", chunk_elements)
    rows, numbers = make(60, seed=1), np.arange(60)
    is_query, is_gallery = numbers % 3 < 2, numbers % 3 > 0
    own_rows = find_own_rows(is_query, is_gallery)
    options = {"k1": 8, "k2": 4, "own_rows": own_rows}
    found = gather(k_reciprocal_similarities(rows[is_query], rows[is_gallery], **options), 40)
    expected = naive_distances(rows, 8, 4, 0.3)[is_query][:, is_gallery]
    np.testing.assert_allclose(-found, expected, atol=1e-9)


def test_jaccard_distances_are_symmetric_and_zero_to_oneself():
    rows = make(80, seed=2)
    found = gather(k_reciprocal_similarities(rows, None, 10, 4, 0.0), 80)
    np.testing.assert_allclose(np.diag(found), 0, atol=1e-12)
    np.testing.assert_allclose(found, found.T, atol=1e-12)
    assert found.min() == -1.0 and found.max() <= 1e-12


def test_an_image_with_many_copies_is_in_its_own_neighbourhood():
    rows = np.concatenate([np.repeat(make(1), 6, axis=0), make(10, seed=3)])
    found = gather(k_reciprocal_similarities(rows, None, 1, 1, 0.0), 16)
    np.testing.assert_allclose(np.diag(found), 0, atol=1e-12)
    # With k1 = 1 a copy has at most one other copy in common with itself.
    assert ((found[:6, :6] > -1).sum(1) <= 2).all()


@pytest.mark.parametrize("value", [0.0, 1.0, 0.3])
def test_a_collapsed_model_gives_finite_similarities(value):
    rows = np.full((12, 3), value, np.float32)
    found = gather(k_reciprocal_similarities(rows, None, 5, 2, 0.3), 12)
    assert np.isfinite(found).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"k1": 10}, "k1 to be 1 to 9 .of 10 images., found 10"),
        ({"k1": 0}, "found 0"),
        ({"k1": 5, "k2": 6}, "k2 to be 1 to k1 = 5, found 6"),
        ({"k1": 5, "k2": 0}, "k2 to be 1 to k1"),
        ({"k1": 5, "k2": 2, "lambda_": 1.5}, "lambda to be 0 to 1, found 1.5"),
    ],
)
def test_parameters_out_of_range_are_errors(options, words):
    with pytest.raises(ValueError, match=words):
        list(k_reciprocal_similarities(make(10), None, **options))
