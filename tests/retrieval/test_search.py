"""Nearest neighbours against a full sort."""

import numpy as np
import pytest

from metric_learning.retrieval import nearest, search


@pytest.mark.parametrize("chunk_elements", [1, 2**25])
def test_neighbours_are_those_of_a_full_sort(chunk_elements, monkeypatch):
    monkeypatch.setattr(search, "CHUNK_ELEMENTS", chunk_elements)
    rows = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    similarities = unit @ unit.T
    found, cosines = nearest(rows, rows, 5)
    assert (found == np.argsort(-similarities, axis=1)[:, :5]).all()
    np.testing.assert_allclose(cosines, -np.sort(-similarities, axis=1)[:, :5], atol=1e-6)


def test_the_query_is_left_out_by_its_row_even_among_duplicates():
    rows = np.ones((4, 3), np.float32)
    found, _ = nearest(rows[[2]], rows, 3, own_rows=np.array([2]))
    assert sorted(found[0]) == [0, 1, 3]


def test_more_neighbours_than_images_is_an_error():
    rows = np.ones((4, 3), np.float32)
    with pytest.raises(ValueError, match="expected 1 to 3 neighbours"):
        nearest(rows, rows, 4, own_rows=np.arange(4))
