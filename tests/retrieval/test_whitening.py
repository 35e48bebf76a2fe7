"""PCA whitening against a singular value decomposition of the whole data."""

import numpy as np
import pytest

from metric_learning.retrieval import whitening
from metric_learning.retrieval.whitening import fit_whitening


def make(n, d, seed=0):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + rng.normal(size=d)
    return (rows * rng.uniform(0.1, 10, (n, 1))).astype(np.float32)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("dim", [None, 1, 5, 12])
@pytest.mark.parametrize("chunk_rows", [7, 2**13])
def test_similarities_are_those_of_a_singular_value_decomposition(dim, chunk_rows, monkeypatch):
    monkeypatch.setattr(whitening, "CHUNK_ROWS", chunk_rows)
    training, others = make(100, 12), make(20, 12, seed=1)
    learned = unit(training.astype(np.float64))
    _, scales, axes = np.linalg.svd(learned - learned.mean(0), full_matrices=False)
    projected = (unit(others.astype(np.float64)) - learned.mean(0)) @ (axes.T / scales)[:, :dim]
    found = fit_whitening(training, dim).apply(others)
    assert found.dtype == np.float32 and found.shape == (20, dim or 12)
    np.testing.assert_allclose(found @ found.T, unit(projected) @ unit(projected).T, atol=1e-5)


def test_whitened_embeddings_vary_equally_in_all_directions():
    training = make(500, 6)
    whitening = fit_whitening(training)
    centred = unit(training.astype(np.float64)) - whitening.mean
    np.testing.assert_allclose(
        np.cov((centred @ whitening.projection).T, ddof=0), np.eye(6), atol=1e-9
    )


def test_the_scale_of_embeddings_does_not_matter():
    training = make(50, 4)
    whitening = fit_whitening(training)
    scaled = fit_whitening(1000 * training)
    np.testing.assert_allclose(
        np.abs(whitening.apply(training)), np.abs(scaled.apply(training / 7)), atol=1e-4
    )


def test_directions_in_which_nothing_varies_are_left_out():
    training = make(50, 4)
    padded = np.concatenate([training, np.zeros((50, 3), np.float32)], axis=1)
    whitening = fit_whitening(padded)
    assert whitening.projection.shape == (7, 4)
    assert np.isfinite(whitening.apply(np.concatenate([padded, np.zeros((1, 7))]))).all()
    with pytest.raises(ValueError, match="vary in 4 directions only, found dim = 5"):
        fit_whitening(padded, 5)
    with pytest.raises(ValueError, match="vary in 0 directions"):
        fit_whitening(np.ones((5, 3), np.float32))


@pytest.mark.parametrize(
    ("shape", "dim", "words"),
    [
        ((20, 8), 9, "20 embeddings of 8 dimensions keeps 1 to 8 dimensions, found 9"),
        ((5, 8), 5, "5 embeddings of 8 dimensions keeps 1 to 4 dimensions, found 5"),
        ((20, 8), 0, "found 0"),
        ((1, 8), None, "2 or more images"),
        ((8,), None, "2 or more images"),
    ],
)
def test_a_dimension_that_cannot_be_learned_is_an_error(shape, dim, words):
    with pytest.raises(ValueError, match=words):
        fit_whitening(np.random.default_rng(0).normal(size=shape), dim)


def test_embeddings_of_another_size_are_an_error():
    with pytest.raises(ValueError, match="expected embeddings of 4 dimensions"):
        fit_whitening(make(20, 4)).apply(make(20, 5))
