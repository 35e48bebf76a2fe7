"""Query expansion and gallery augmentation against loops, and the one entry to all methods."""

import numpy as np
import pytest

from metric_learning.retrieval import rerank
from metric_learning.retrieval.reciprocal import k_reciprocal_similarities
from metric_learning.retrieval.rerank import (
    Rerank,
    augment_gallery,
    expand_queries,
    parse_rerank,
    reranked_similarities,
)

KRECIPROCAL = {"k1": 20, "k2": 6, "lambda": 0.3, "strict": 0}


def make(n, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 5)).astype(np.float32)


def unit(rows):
    rows = np.asarray(rows, np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def naive_expansion(queries, gallery, k, alpha, own_rows=None):
    """alpha-QE, one neighbour after the other."""
    gallery = unit(gallery)
    expanded = []
    for i, query in enumerate(unit(queries)):
        cosines = {g: float(gallery[g] @ query) for g in range(len(gallery))}
        if own_rows is not None:
            del cosines[own_rows[i]]
        total = query.copy()
        for g in sorted(cosines, key=cosines.get, reverse=True)[:k]:
            total += max(cosines[g], 0.0) ** alpha * gallery[g]
        expanded.append(total)
    return unit(expanded)


@pytest.mark.parametrize(("k", "alpha"), [(1, 3.0), (10, 3.0), (10, 0.0), (29, 0.5)])
def test_expansion_equals_the_definition(k, alpha):
    queries, gallery = make(12), 5 * make(30, seed=1)
    found = expand_queries(queries, gallery, k, alpha)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, naive_expansion(queries, gallery, k, alpha), atol=1e-5)
    own = naive_expansion(gallery, gallery, k, alpha, own_rows=range(30))
    np.testing.assert_allclose(expand_queries(gallery, None, k, alpha), own, atol=1e-5)
    np.testing.assert_allclose(augment_gallery(gallery, k, alpha), own, atol=1e-5)


def test_a_query_that_the_gallery_holds_is_none_of_its_neighbours():
    rows, own_rows = make(20), np.array([3, -1, 19])
    queries = np.stack([rows[3], make(1, seed=2)[0], rows[19]])
    found = expand_queries(queries, rows, 4, own_rows=own_rows)
    inside = naive_expansion(queries[[0, 2]], rows, 4, 3.0, own_rows=[3, 19])
    np.testing.assert_allclose(found[[0, 2]], inside, atol=1e-5)
    np.testing.assert_allclose(found[[1]], naive_expansion(queries[[1]], rows, 4, 3.0), atol=1e-5)


def test_a_query_counts_once_and_its_duplicates_are_ordinary_neighbours():
    rows = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    expanded = expand_queries(rows, None, k=1)
    np.testing.assert_allclose(expanded, [[1, 0], [1, 0], [0, 1]], atol=1e-6)
    np.testing.assert_allclose(expand_queries(rows, None, k=2, alpha=1), expanded, atol=1e-6)


def test_embeddings_that_are_given_are_left_as_they_are():
    rows = unit(make(10)).astype(np.float32)
    before = rows.copy()
    expand_queries(rows, None, 3)
    assert (rows == before).all()


def test_wrong_parameters_are_errors():
    with pytest.raises(ValueError, match="alpha to be 0 or more, found -1"):
        expand_queries(make(5), None, 2, -1)
    with pytest.raises(ValueError, match="expected 1 to 4 neighbours"):
        expand_queries(make(5), None, 5)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("qe", Rerank("qe", {"k": 10, "alpha": 3.0})),
        ("qe:k=5", Rerank("qe", {"k": 5, "alpha": 3.0})),
        ("dba:alpha=2,k=3", Rerank("dba", {"k": 3, "alpha": 2.0})),
        ("kreciprocal", Rerank("kreciprocal", KRECIPROCAL)),
        ("kreciprocal:lambda=0", Rerank("kreciprocal", KRECIPROCAL | {"lambda": 0.0})),
        ("kreciprocal:strict=1", Rerank("kreciprocal", KRECIPROCAL | {"strict": 1})),
    ],
)
def test_methods_are_parsed(text, expected):
    found = parse_rerank(text)
    assert found == expected
    assert parse_rerank(str(found)) == found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "qe, dba, kreciprocal, found ''"),
        ("kr", "found 'kr'"),
        ("qe:k1=3", "re-ranking by qe has no parameter 'k1': its parameters are k, alpha"),
        ("qe:k=three", "k to be an integer, found 'three'"),
    ],
)
def test_unknown_methods_and_parameters_are_errors(text, words):
    with pytest.raises(ValueError, match=words):
        parse_rerank(text)


def gather(chunks):
    parts, done = [], 0
    for rows, similarities in chunks:
        assert rows.start == done and rows.stop - done == len(similarities)
        done = rows.stop
        parts.append(similarities)
    return np.concatenate(parts)


@pytest.mark.parametrize("chunk_elements", [1, 100, 2**24])
@pytest.mark.parametrize("has_gallery", [True, False])
def test_similarities_are_those_of_the_new_embeddings(chunk_elements, has_gallery, monkeypatch):
    monkeypatch.setattr(rerank, "CHUNK_ELEMENTS", chunk_elements)
    queries = make(14)
    gallery = make(20, seed=1) if has_gallery else None
    searched = gallery if has_gallery else queries
    expanded = expand_queries(queries, gallery, 4, 2.0)
    found = gather(reranked_similarities(parse_rerank("qe:k=4,alpha=2"), queries, gallery))
    np.testing.assert_allclose(found, unit(expanded) @ unit(searched).T, atol=1e-12)
    augmented = augment_gallery(searched, 4, 2.0)
    found = gather(reranked_similarities(parse_rerank("dba:k=4,alpha=2"), queries, gallery))
    np.testing.assert_allclose(found, unit(queries) @ unit(augmented).T, atol=1e-12)
    found = gather(
        reranked_similarities(parse_rerank("kreciprocal:k1=5,k2=2,lambda=0.4"), queries, gallery)
    )
    expected = gather(k_reciprocal_similarities(queries, gallery, 5, 2, 0.4))
    assert (found == expected).all()
    strictly = parse_rerank("kreciprocal:k1=6,k2=2,lambda=0.4,strict=1")
    found = gather(reranked_similarities(strictly, queries, gallery))
    expected = gather(k_reciprocal_similarities(queries, gallery, 6, 2, 0.4, strict=True))
    assert (found == expected).all()
    with pytest.raises(ValueError, match="strict to be 0 or 1, found 2"):
        gather(reranked_similarities(parse_rerank("kreciprocal:k1=6,strict=2"), queries, gallery))
    assert found.dtype == np.float64 and found.shape == (14, len(searched))
