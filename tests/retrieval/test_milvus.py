"""Search indexes in Milvus Lite against exact ones, and what is refused; needs pymilvus."""

import fcntl
import json

import numpy as np
import pytest

pytest.importorskip("faiss")
pytest.importorskip("pymilvus")
pytest.importorskip("milvus_lite")

from metric_learning.common.fingerprint import STATE  # noqa: E402
from metric_learning.retrieval import milvus_collections  # noqa: E402
from metric_learning.retrieval.index_entry import Addition  # noqa: E402
from metric_learning.retrieval.indexes import build_index, measure_recall  # noqa: E402
from metric_learning.retrieval.milvus import open_milvus_index, write_milvus_index  # noqa: E402
from metric_learning.retrieval.milvus_client import connect, parse_place  # noqa: E402


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


def states(count, start=0):
    """States of files, each another one."""
    found = np.zeros(count, STATE)
    found["size"], found["mtime"] = np.arange(start, start + count), 1764270000123456789
    found["digest"] = np.random.default_rng(start).integers(0, 256, (count, 16))
    return found


def test_an_index_that_grew_and_shrank_finds_what_an_exact_one_of_the_same_finds(tmp_path):
    rows, more, queries = make(), make(40, seed=2), make(20, seed=1)
    place = f"milvus:{tmp_path / 'a.db'}#photos"
    paths = [f"photos/{n}.jpg" for n in range(300)]
    about = {"labels": np.arange(300) // 100, "class_names": {0: "a", 1: "b", 2: "c"}}
    kept = {"unknown_threshold": {"cosine": 0.5}}
    index = write_milvus_index(place, rows, paths, "exact", **about, states=states(300))
    index.metadata |= kept
    index.remove(np.array([0, 7, 299]))
    index.class_names[index.next_label] = "new"
    former = np.full(40, -1)
    former[:2] = 5, 298  # which have changed
    names = [f"new/{n}.jpg" for n in range(40)]
    index.add(Addition(more, names, np.full(40, 3), None, states(40, 300), former))
    index.save(place)
    index.client.close()

    found = open_milvus_index(place)
    assert len(found) == 300 - 3 + 38 and found.metadata == kept and found.next_row == 338
    assert found.num_of_class("new") == 40 and found.num_of_class("a") == 97
    held = found.held()
    expected = dict(zip(range(300), rows, strict=True)) | {5: more[0], 298: more[1]}
    expected |= dict(zip(range(300, 338), more[2:], strict=True))
    for gone in (0, 7, 299):
        del expected[gone]
    assert held.rows.tolist() == sorted(expected) and held.boxes is None
    assert held.paths[:5] == ["photos/1.jpg", *(f"photos/{n}.jpg" for n in (2, 3, 4))] + [names[0]]
    assert (held.states[4] == states(1, 300)).all() and held.states[-1] == states(40, 300)[-1]
    assert (found.states(np.array([337, 1])) == held.states[[-1, 0]]).all()

    exact = build_index(np.stack([expected[row] for row in held.rows.tolist()]), held.paths)
    ours, cosines = found.search(queries, 10)
    right, right_cosines = exact.search(queries, 10)
    assert (ours == held.rows[right]).all()
    np.testing.assert_allclose(cosines, right_cosines, atol=1e-5)
    with pytest.raises(LookupError, match="no such image any more"):
        found.entries(np.array([7]))
    found.client.close()


def test_boxes_go_with_their_images(tmp_path):
    place = f"milvus:{tmp_path / 'a.db'}#photos"
    boxes = np.arange(40, dtype=np.int32).reshape(10, 4)
    index = write_milvus_index(place, make(10), list("a" * 10), "exact", boxes=boxes)
    assert index.entries(np.array([9, 0]))[0].box == (36, 37, 38, 39)
    index.remove(np.array([9]))
    assert (index.held().boxes == boxes[:9]).all()
    plain = write_milvus_index(place, make(10), list("a" * 10), "exact")
    assert plain.entries(np.array([0]))[0].box is None and plain.held().boxes is None
    nobody = np.full(1, -1)
    some = Addition(make(1), ["b"], np.empty(0, np.int64), boxes[1:2], states(1), nobody)
    plain.add(some)
    assert plain.held().boxes.tolist() == [[0, 0, 0, 0]] * 10 + [[4, 5, 6, 7]]
    plain.client.close()


def test_an_addition_that_was_interrupted_gives_no_row_twice(tmp_path, monkeypatch):
    place = f"milvus:{tmp_path / 'a.db'}#photos"
    index = write_milvus_index(place, make(10), list("a" * 10), "exact", states=states(10))
    more = Addition(
        make(6, seed=1), list("bcdefg"), np.empty(0, np.int64), None, states(6), np.full(6, -1)
    )
    monkeypatch.setattr(milvus_collections, "ROWS_AT_ONCE", 2)
    write, calls = index.client.insert, []

    def stops(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return write(*arguments)

    monkeypatch.setattr(index.client, "insert", stops)
    with pytest.raises(KeyboardInterrupt):
        index.add(more)
    found = open_milvus_index(place)
    assert len(found) == 12 and found.next_row == 16
    found.add(more._replace(paths=list("hijklm")))
    assert found.held().rows.tolist() == [*range(12), *range(16, 22)]
    found.client.close()


def test_a_text_that_became_shorter_is_read_back(tmp_path):
    place = f"milvus:{tmp_path / 'a.db'}#photos"
    index = write_milvus_index(
        place, make(10), list("a" * 10), "exact", metadata={"x": "y" * 10**5}
    )
    index.metadata.clear()
    index.save(place)
    index.client.close()
    found = open_milvus_index(place)
    assert found.metadata == {} and found.num_parts == 2
    found.client.close()


class Recorder:
    """A client that notes what it is asked for."""

    def __init__(self):
        self.calls = []

    def insert(self, collection, images):
        self.calls += ["insert"] * len(images)

    def upsert(self, collection, images):
        self.calls += ["upsert"] * len(images)

    def flush(self, collection):
        self.calls.append("flush")


@pytest.mark.parametrize(
    ("database", "expected"), [("a.db", [50, 50, 20]), ("http://host:19530", [120])]
)
def test_milvus_lite_is_asked_to_write_before_vectors_are_many(database, expected, monkeypatch):
    monkeypatch.setattr(milvus_collections, "ROWS_AT_ONCE", 10)
    monkeypatch.setattr(milvus_collections, "FLUSH_BYTES", 4 * 16 * 50)
    client, former = Recorder(), np.full(120, -1)
    former[7] = 3
    some = Addition(make(120), list("a" * 120), np.empty(0, np.int64), None, states(120), former)
    place = parse_place(f"milvus:{database}#photos")
    milvus_collections.put_images(client, place, "photos_0", some, np.arange(120))
    assert client.calls[:11] == ["upsert"] * 10 + ["insert"]
    stops = [-1, *[n for n, call in enumerate(client.calls) if call == "flush"]]
    assert (np.diff(stops) - 1).tolist() == expected


def test_an_index_of_an_earlier_version_is_refused(tmp_path, monkeypatch):
    place = f"milvus:{tmp_path / 'a.db'}#photos"
    monkeypatch.setattr(milvus_collections, "FORMAT", 1)
    write_milvus_index(place, make(10), list("a" * 10), "exact").client.close()
    monkeypatch.undo()
    with pytest.raises(ValueError, match="built by an earlier version: build it again"):
        open_milvus_index(place)


def test_a_database_that_another_process_has_is_refused(tmp_path):
    place = f"milvus:{tmp_path / 'a.db'}#photos"
    (tmp_path / "a.db").mkdir()
    with (tmp_path / "a.db" / "LOCK").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for use in (
            lambda: write_milvus_index(place, make(10), list("a" * 10), "exact"),
            lambda: open_milvus_index(place),
        ):
            with pytest.raises(ValueError, match="another process has it open"):
                use()
    write_milvus_index(place, make(10), list("a" * 10), "exact").client.close()
