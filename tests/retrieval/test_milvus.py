"""Search indexes in Milvus Lite against exact ones, and what is refused; needs pymilvus."""

import json

import numpy as np
import pytest

pytest.importorskip("faiss")
pytest.importorskip("pymilvus")
pytest.importorskip("milvus_lite")

from metric_learning.retrieval.indexes import build_index, measure_recall  # noqa: E402
from metric_learning.retrieval.milvus import (  # noqa: E402
    connect,
    open_milvus_index,
    parse_place,
    write_milvus_index,
)


def make(n=300, d=16, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, d)) * rng.uniform(0.1, 10, (n, 1))).astype(np.float32)


def test_answers_are_those_of_an_exact_index(tmp_path):
    rows, queries = make(), make(20, seed=1)
    paths = [f"photos/{n}.jpg" for n in range(298)] + ["two\nlines.jpg", "not\udcff utf.jpg"]
    about = {"labels": np.arange(300) // 100, "class_names": {0: "rot é", 1: "blau"}}
    about["metadata"] = {"depends_on": {"weights": "sha256:0"}, "long": "é" * 100_000}
    place = f"milvus:{tmp_path / 'new' / 'a.db'}#photos"
    write_milvus_index(place, rows, paths, **about, kind="exact").client.close()
    index, exact = open_milvus_index(place), build_index(rows, paths, **about)
    found, cosines = index.search(queries, 10)
    expected, expected_cosines = exact.search(queries, 10)
    assert (found == expected).all() and len(index) == 300
    np.testing.assert_allclose(cosines, expected_cosines, atol=1e-5)
    assert measure_recall(index, queries, 10, rows) == 1

    some = np.array([299, 0, 150, 298])
    assert index.entries(some) == exact.entries(some)
    assert index.metadata == json.loads(json.dumps(exact.metadata))
    assert index.depends_on == exact.depends_on and index.class_names == exact.class_names
    found, _ = index.search(queries, 5, class_name="blau")
    assert (found == exact.search(queries, 5, class_name="blau")[0]).all()
    assert index.num_of_class("blau") == 100 and index.num_of_class("none such") == 0
    index.client.close()


@pytest.mark.parametrize(
    ("kind", "options"), [("hnsw", {"m": 16, "ef_search": 64}), ("ivf", {"nlist": 8, "nprobe": 4})]
)
def test_approximate_kinds_find_most(kind, options, tmp_path):
    rows, queries = make(), make(20, seed=1)
    place = f"milvus:{tmp_path / 'a.db'}#photos"
    index = write_milvus_index(place, rows, list("a" * 300), kind, options=options)
    assert measure_recall(index, queries, 10, rows) > 0.6
    index.client.close()


def test_a_new_index_takes_the_place_of_the_old_one_alone(tmp_path):
    place, other = (f"milvus:{tmp_path / 'a.db'}#{name}" for name in ("photos", "photos_2"))
    for where, count in ((place, 300), (other, 100), (place, 200)):
        write_milvus_index(where, make(count), list("a" * count), "exact").client.close()
    assert [len(open_milvus_index(where)) for where in (place, other)] == [200, 100]
    client = connect(parse_place(place))
    assert len(client.list_collections()) == 4


def test_a_collection_of_others_is_not_replaced(tmp_path):
    place = f"milvus:{tmp_path / 'a.db'}#photos"
    client = connect(parse_place(place))
    client.create_collection("photos", dimension=4)
    client.close()
    with pytest.raises(ValueError, match="nothing is replaced"):
        write_milvus_index(place, make(), list("a" * 300), "exact")


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("milvus:a.db", "expected milvus:FILE.db#NAME"),
        ("milvus:#photos", "expected milvus:FILE.db#NAME"),
        ("milvus:a.index#photos", "expected milvus:FILE.db#NAME"),
        ("milvus:a.db#no name", "a name of letters"),
        ("milvus:a.db#1", "a name of letters"),
        ("milvus:a.db#a' or 1", "a name of letters"),
    ],
)
def test_wrong_places_are_refused(place, words):
    with pytest.raises(ValueError, match=words):
        open_milvus_index(place)


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such database"):
        open_milvus_index(f"milvus:{tmp_path / 'a.db'}#photos")
    write_milvus_index(
        f"milvus:{tmp_path / 'a.db'}#photos", make(), "a" * 300, "exact"
    ).client.close()
    with pytest.raises(ValueError, match="holds no index other"):
        open_milvus_index(f"milvus:{tmp_path / 'a.db'}#other")
    with pytest.raises(ValueError, match="--index_type of exact, ivf, hnsw"):
        write_milvus_index(f"milvus:{tmp_path / 'a.db'}#a", make(), "a" * 300, "ivfpq")
