"""Ranks by Euclidean distance against their definition: a loop over pairs in float64."""

import numpy as np
import pytest
import torch
from oracle import make

from metric_learning.engine.options import tables
from metric_learning.retrieval import euclidean, evaluate, score_queries
from metric_learning.retrieval.metrics import DISTANCES
from metric_learning.retrieval.ranks import iterate_ranks, ranks_of_similarities

KINDS = ["random", "clustered", "tied", "duplicated", "collapsed", "large classes"]
KINDS += ["near ties", "one image each"]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def loop_ranks(queries, query_labels, gallery, gallery_labels, own_rows):
    """Query row -> (ranks, untied ranks): whose squared distances differ by 2e-9 v are level."""
    queries, gallery = np.asarray(queries, np.float64), np.asarray(gallery, np.float64)
    slack, found = 2e-9 * (gallery**2).sum(1).mean(), {}
    for q, row in enumerate(queries):
        squares = [float(((row - other) ** 2).sum()) for other in gallery]
        searched = [g for g in range(len(gallery)) if g != own_rows[q]]
        near = sorted(squares[g] for g in searched if gallery_labels[g] == query_labels[q])
        far = np.array([squares[g] for g in searched if gallery_labels[g] != query_labels[q]])
        if near:
            found[q] = (
                [n + 1 + int((far <= square + slack).sum()) for n, square in enumerate(near)],
                [n + 1 + int((far < square - slack).sum()) for n, square in enumerate(near)],
            )
    return found


def found_ranks(queries, query_labels, gallery, gallery_labels, own_rows, device):
    chunks = euclidean.euclidean_similarities(queries, gallery, device)
    own_rows = np.arange(len(queries)) if gallery is None else own_rows
    found = {}
    for part in ranks_of_similarities(chunks, query_labels, gallery_labels, own_rows):
        for n, query in enumerate(part.queries):
            own = slice(part.offsets[n], part.offsets[n + 1])
            found[int(query)] = part.ranks[own].tolist(), part.untied_ranks[own].tolist()
    return found


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "d"), [(2, 1), (40, 3), (150, 16)])
def test_self_retrieval_equals_the_loop(kind, n, d, device, monkeypatch):
    rows, labels = make(kind, n, d)
    rows = rows * np.random.default_rng(1).choice([1, 1, 3], (n, 1)).astype(np.float32)
    expected = loop_ranks(rows, labels, rows, labels, np.arange(n))
    assert found_ranks(rows, labels, None, labels, None, device) == expected
    monkeypatch.setattr(euclidean, "CHUNK_ELEMENTS", 7 * n)
    monkeypatch.setattr(euclidean, "GALLERY_ROWS", 11)
    assert found_ranks(rows, labels, None, labels, None, device) == expected


@pytest.mark.parametrize("kind", ["random", "tied", "duplicated"])
def test_a_gallery_that_holds_some_queries_equals_the_loop(kind):
    rows, labels = make(kind, 90, 5)
    queries, gallery = rows[:40], rows[25:]
    own_rows = np.where(np.arange(40) >= 25, np.arange(40) - 25, -1)
    sets = (queries, labels[:40], gallery, labels[25:], own_rows)
    assert found_ranks(*sets, "cpu") == loop_ranks(*sets)


@pytest.mark.parametrize("kind", ["random", "duplicated", "near ties"])
def test_embeddings_of_one_length_rank_as_by_cosine(kind):
    rows, labels = make(kind, 200, 8)
    rows = rows.astype(np.float64)
    rows *= 4.0 / np.linalg.norm(rows, axis=1, keepdims=True)
    own = found_ranks(rows, labels, None, labels, None, "cpu")
    [part] = iterate_ranks(rows, labels, None, labels)
    assert [rank for ranks, _ in own.values() for rank in ranks] == part.ranks.tolist()
    assert [rank for _, ranks in own.values() for rank in ranks] == part.untied_ranks.tolist()


def test_lengths_count_and_places_do_not():
    rows = np.array([[1, 0], [3, 0.1], [0.9, 0.5], [3.2, 0]], np.float32)
    assert evaluate(rows, [0, 1, 0, 1], (1,), distance="euclidean")["recall@1"] == 1.0
    assert evaluate(rows, [0, 1, 0, 1], (1,))["recall@1"] < 1.0
    rows, labels = make("clustered", 80, 6)
    moved = rows + np.float32(8.0)
    near, far = (evaluate(part, labels, distance="euclidean") for part in (rows, moved))
    assert near["map"] == pytest.approx(far["map"], abs=1e-3)


@pytest.mark.parametrize("value", [0.0, 1.0, 1e-3])
def test_a_collapsed_model_scores_zero(value):
    rows = np.full((20, 4), value, np.float32)
    found = evaluate(rows, np.arange(20) // 2, (1,), distance="euclidean")
    assert found["recall@1"] == found["map@r"] == 0.0
    expected = evaluate(rows, np.arange(20) // 2, (1,), distance="euclidean", ties="expected")
    assert expected["recall@1"] == pytest.approx(1 / 19)


def test_mapped_features_are_read_in_pieces(tmp_path):
    rows, labels = make("clustered", 60, 5)
    np.save(tmp_path / "rows.npy", rows)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    found = evaluate(mapped, labels, distance="euclidean")
    assert found == evaluate(rows, labels, distance="euclidean")


def test_an_unknown_distance_is_one_line():
    assert tables.DISTANCES == DISTANCES  # written out for the flag
    rows, labels = make("random", 20, 3)
    with pytest.raises(ValueError, match="expected a distance of cosine, euclidean, found 'l1'"):
        score_queries(rows, labels, distance="l1")
