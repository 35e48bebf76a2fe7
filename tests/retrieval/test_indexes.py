"""Search indexes against exact search, and their files."""

import json
import os
import subprocess
import sys
import types
import zipfile

import numpy as np
import pytest
import torch

from metric_learning.common.fingerprint import STATE, Snapshot
from metric_learning.retrieval import nearest, unit
from metric_learning.retrieval.index_entry import Addition
from metric_learning.retrieval.index_kinds import INDEX_OPTIONS, choose_options
from metric_learning.retrieval.indexes import (
    SearchIndex,
    build_index,
    is_search_index,
    load_search_index,
    measure_recall,
)

pytest.importorskip("faiss")

APPROXIMATE = [kind for kind in INDEX_OPTIONS if kind != "exact"]


def make(n=600, d=16, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(n // 10 + 1, d))
    rows = centres[rng.integers(0, len(centres), n)] + 0.3 * rng.normal(size=(n, d))
    return (rows * rng.uniform(0.1, 10, (n, 1))).astype(np.float32)


def names(rows):
    return [f"photos/{n}.jpg" for n in range(len(rows))]


def cosine(rows, others):
    rows, others = (
        group / np.linalg.norm(group, axis=-1, keepdims=True)
        for group in (np.asarray(rows, np.float64), np.asarray(others, np.float64))
    )
    return (rows[:, None] * others).sum(-1)


def test_an_exact_index_finds_what_exact_search_finds():
    rows, queries = make(), make(40, seed=1)
    found, cosines = build_index(rows, names(rows)).search(queries, 7)
    expected, expected_cosines = nearest(queries, rows, 7)
    assert (found == expected).all()
    np.testing.assert_allclose(cosines, expected_cosines, atol=1e-5)


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_approximate_indexes_find_most_neighbours(kind):
    rows, queries = make(), make(40, seed=1)
    index = build_index(rows, names(rows), kind)
    found, cosines = index.search(queries, 10)
    assert found.shape == cosines.shape == (40, 10)
    assert (np.diff(cosines, axis=1) <= 0).all()
    assert all(len(set(row)) == 10 for row in found.tolist())
    if kind != "ivfpq":
        np.testing.assert_allclose(cosines, cosine(queries, rows[found]), atol=1e-5)
    assert measure_recall(index, queries, 10, rows) > (0.6 if kind == "ivfpq" else 0.95)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("ivf", {"nlist": 20, "nprobe": 1}),
        ("ivfpq", {"nlist": 20, "nprobe": 1, "m": 4}),
        ("hnsw", {"m": 2, "ef_construction": 2, "ef_search": 1}),
    ],
)
def test_k_neighbours_are_found_also_where_few_are_looked_at(kind, options):
    rows = make(300)
    rows[:100] = rows[0]  # copies, of which a graph reaches some only
    index = build_index(rows, names(rows), kind, options=options)
    found, _ = index.search(rows[::10], 300)
    assert (np.sort(found, axis=1) == np.arange(300)).all()


def test_recall_is_the_share_of_exact_neighbours():
    rows, queries = make(seed=2), make(30, seed=3)
    index = build_index(rows, names(rows), "ivf", options={"nlist": 30, "nprobe": 1})
    found, _ = index.search(queries, 5)
    order = np.argsort(-cosine(queries, rows[None]), axis=1)[:, :5]
    shares = [len(set(a) & set(b)) / 5 for a, b in zip(found.tolist(), order.tolist(), strict=True)]
    assert 0 < np.mean(shares) < 1
    assert measure_recall(index, queries, 5, rows) == pytest.approx(np.mean(shares))


def test_recall_leaves_a_query_s_own_row_out():
    rows = make(seed=4)
    index = build_index(rows, names(rows), "ivf", options={"nlist": 30, "nprobe": 1})
    own = np.arange(0, 600, 20)
    similar = cosine(rows[own], rows[None])
    similar[np.arange(30), own] = -2
    order = np.argsort(-similar, axis=1)[:, :5]
    found, _ = index.search(rows[own], 6)
    others = [[n for n in row if n != own[i]][:5] for i, row in enumerate(found.tolist())]
    shares = [len(set(a) & set(b)) / 5 for a, b in zip(others, order.tolist(), strict=True)]
    assert measure_recall(index, rows[own], 5, rows, own) == pytest.approx(np.mean(shares))


def test_which_of_equal_images_is_found_does_not_lower_the_recall():
    rows = np.repeat(make(30), 10, axis=0)
    index = build_index(rows, names(rows), "hnsw")
    assert measure_recall(index, rows[:50], 3, rows, np.arange(50)) == 1.0


@pytest.mark.parametrize("kind", INDEX_OPTIONS)
def test_a_file_holds_everything(kind, tmp_path):
    rows, queries = make(), make(9, seed=1)
    labels = np.arange(600) // 100
    index = build_index(
        rows,
        names(rows),
        kind,
        labels=labels,
        class_names={n: f"klasse é {n}" for n in range(5)},
        metadata={"fingerprint": "sha256:0", "flags": {"image_shape": (3, 32, 32)}},
    )
    index.save(tmp_path / "a.index")
    assert [file.name for file in tmp_path.iterdir()] == ["a.index"]
    assert is_search_index(tmp_path / "a.index")
    loaded = load_search_index(tmp_path / "a.index")
    assert (loaded.kind, loaded.paths, len(loaded)) == (kind, names(rows), 600)
    assert loaded.embedding_size == 16
    assert (loaded.labels == labels).all() and loaded.class_names == index.class_names
    assert loaded.metadata["fingerprint"] == "sha256:0"
    assert [loaded.class_name(n) for n in (0, 499, 500)] == ["klasse é 0", "klasse é 4", "5"]
    for found, expected in zip(loaded.search(queries, 20), index.search(queries, 20), strict=True):
        assert (found == expected).all()


def test_labels_are_optional(tmp_path):
    rows = make(3)
    build_index(rows, names(rows)).save(tmp_path / "a.index")
    loaded = load_search_index(tmp_path / "a.index")
    assert loaded.class_name(1) is None and loaded.class_names == {}


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_one_clear_error(share, tmp_path):
    rows, file = make(), tmp_path / "a.index"
    build_index(rows, names(rows)).save(file)
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(ValueError, match="a.index is damaged or no search index"):
        load_search_index(file)


def test_a_changed_byte_is_noticed(tmp_path):
    rows, file = make(50), tmp_path / "a.index"
    build_index(rows, names(rows)).save(file)
    whole = file.read_bytes()
    for place in np.random.default_rng(0).integers(0, len(whole), 200):
        changed = bytearray(whole)
        changed[place] ^= 0xFF
        file.write_bytes(bytes(changed))
        try:
            loaded = load_search_index(file)
        except ValueError as error:
            assert "damaged or no search index" in str(error), error
            continue
        # Bytes such as the date of an entry hold nothing of the index.
        assert loaded.paths == names(rows)
        assert (loaded.search(rows, 3)[0] == nearest(rows, rows, 3)[0]).all()


def test_other_files_are_no_search_indexes(tmp_path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "weights.pt")
    np.savez(tmp_path / "arrays.npz", header=np.zeros(2))
    (tmp_path / "text.index").write_text("hello")
    with zipfile.ZipFile(tmp_path / "alike.index", "w") as archive:
        archive.writestr("header.json", "[]")
        archive.writestr("index.faiss", b"")
    for name in ("weights.pt", "arrays.npz", "text.index"):
        assert not is_search_index(tmp_path / name)
    for file in tmp_path.iterdir():
        with pytest.raises(ValueError, match=f"{file.name} is damaged or no search index"):
            load_search_index(file)
    with pytest.raises(OSError, match="nowhere"):
        load_search_index(tmp_path / "nowhere.index")
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path, tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(ValueError, match="expected a regular file"):
            load_search_index(place)


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path):
    rows, file = make(20), tmp_path / "a.index"
    index = build_index(rows, names(rows))
    index.save(file)
    before = file.read_bytes()
    index.metadata["flags"] = object()
    with pytest.raises(TypeError):
        index.save(file)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.index"]


@pytest.mark.parametrize("k", [0, 21])
def test_more_neighbours_than_images_is_an_error(k):
    rows = make(20)
    with pytest.raises(
        ValueError, match=f"expected 1 to 20 neighbours in this index, found k = {k}"
    ):
        build_index(rows, names(rows)).search(rows, k)


def test_an_exact_index_reads_features_piece_by_piece(monkeypatch):
    rows, asked = make(20), []

    class InFiles:
        ndim, shape = 2, rows.shape

        def __len__(self):
            return len(rows)

        def __getitem__(self, part):
            asked.append(len(rows[part]))
            return rows[part]

    whole = build_index(rows, names(rows)).vectors.reconstruct_n(0, 20)
    monkeypatch.setattr(unit, "PIECE_ROWS", 6)
    found = build_index(InFiles(), names(rows))
    assert asked == [6, 6, 6, 2] and np.array_equal(found.vectors.reconstruct_n(0, 20), whole)
    rows[13] = np.inf
    with pytest.raises(ValueError, match="NaN or infinity, first in row 13"):
        build_index(InFiles(), names(rows))


def test_wrong_embeddings_are_errors():
    rows = make(20)
    index = build_index(rows, names(rows))
    with pytest.raises(ValueError, match="16 dimensions, the queries have 15"):
        index.search(rows[:, :15], 3)
    with pytest.raises(ValueError, match=r"shape \(N, D\), found \(0, 16\)"):
        build_index(rows[:0], [])
    with pytest.raises(ValueError, match="found 19 paths and 0 labels"):
        build_index(rows, names(rows)[:19])
    with pytest.raises(ValueError, match="found 20 paths and 3 labels"):
        build_index(rows, names(rows), labels=[1, 2, 3])
    rows[3, 2] = np.nan
    with pytest.raises(ValueError, match="NaN or infinity"):
        build_index(rows, names(rows))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("flat", {}, 1000, 16), "exact, ivf, ivfpq, hnsw, found 'flat'"),
        (("exact", {"m": 3}, 1000, 16), "index exact has no parameter m: its parameters are none"),
        (("ivf", {"m": 3}, 1000, 16), "its parameters are nlist, nprobe"),
        (("ivf", {"nlist": 1001}, 1000, 16), "nlist to be 1 to 1000, found 1001"),
        (("ivf", {"nlist": 9, "nprobe": 10}, 1000, 16), "nprobe to be 1 to 9, found 10"),
        (("ivf", {"nprobe": 0}, 1000, 16), "nprobe to be 1 to 25, found 0"),
        (("ivfpq", {}, 255, 16), "256 images or more, found 255: choose exact"),
        (("ivfpq", {"m": 3}, 1000, 16), "m = 3 does not divide 16 dimensions"),
        (("hnsw", {"m": 1}, 1000, 16), "m to be 2 or more, found 1"),
        (("hnsw", {"ef_search": 0}, 1000, 16), "ef_search to be 1 or more, found 0"),
    ],
)
def test_wrong_parameters_are_errors(arguments, words):
    with pytest.raises(ValueError, match=words):
        choose_options(*arguments)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("exact", {}, 10, 8), {}),
        (("ivf", {}, 60502, 512), {"nlist": 984, "nprobe": 61}),
        (("ivf", {}, 1, 512), {"nlist": 1, "nprobe": 1}),
        (("ivf", {"nlist": 5}, 100, 512), {"nlist": 5, "nprobe": 5}),
        (("ivfpq", {}, 60502, 2048), {"nlist": 984, "nprobe": 61, "m": 256}),
        (("ivfpq", {"m": 7}, 256, 7), {"nlist": 6, "nprobe": 6, "m": 7}),
        (("hnsw", {"m": 16}, 5, 8), {"m": 16, "ef_construction": 200, "ef_search": 128}),
    ],
)
def test_defaults_follow_the_size_of_the_data(arguments, expected):
    assert choose_options(*arguments) == expected


@pytest.mark.parametrize("kind", ["exact", "ivf", "hnsw"])
def test_one_image_is_enough(kind):
    found, cosines = build_index(np.ones((1, 4)), ["a.jpg"], kind).search(np.ones((2, 4)), 1)
    assert found.tolist() == [[0], [0]] and cosines == pytest.approx(1)


def test_without_faiss_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ValueError, match="search index needs .*faiss.*pip install faiss-cpu"):
        build_index(np.ones((3, 4)), names(range(3)))


@pytest.mark.parametrize("is_full", [False, True])
def test_a_gpu_searches_where_faiss_has_one(is_full, monkeypatch):
    rows = make(50)
    index = build_index(rows, names(rows))
    searched = []

    class OnGpu:
        def search(self, queries, k):
            searched.append(len(queries))
            return index.vectors.search(queries, k)

    def copy(resources, device, vectors):
        assert (resources, device, vectors) == ("resources", 1, index.vectors)
        if is_full:
            raise RuntimeError("out of memory")
        return OnGpu()

    faiss = types.SimpleNamespace(
        get_num_gpus=lambda: 2,
        StandardGpuResources=lambda: "resources",
        index_cpu_to_gpu=copy,
    )
    monkeypatch.setitem(sys.modules, "faiss", faiss)
    for device in ("cuda:1", "cpu", "cuda:1"):
        found, _ = index.search(rows, 3, device)
        assert (found == nearest(rows, rows, 3)[0]).all()
    assert searched == ([] if is_full else [50, 50])


def test_an_index_is_made_of_its_parts():
    rows = make(20)
    index = build_index(rows, names(rows), metadata={"a": 1})
    assert isinstance(index, SearchIndex)
    assert (index.kind, index.metadata, len(index.labels)) == ("exact", {"a": 1}, 0)


def with_snapshot(rows, kind, labels=()):
    """An index that knows its images, as those do that infer.py builds."""
    index = build_index(rows, names(rows), kind, labels=labels)
    index.snapshot = Snapshot(names(rows), [], np.zeros(len(rows), STATE))
    return index


@pytest.mark.parametrize("kind", INDEX_OPTIONS)
def test_an_index_that_grew_and_shrank_finds_what_one_of_the_same_images_finds(kind, tmp_path):
    rows, queries, more = make(600), make(40, seed=1), make(50, seed=2)
    index = with_snapshot(rows, kind, np.arange(600) // 100)
    gone = np.array([599, 0, 7, 300, 301])
    index.remove(gone)
    new_names = [f"new/{n}.jpg" for n in range(50)]
    nobody = np.full(50, -1)
    index.add(Addition(more, new_names, np.full(50, 9), None, np.zeros(50, STATE), nobody))
    index.remove(np.array([0, 640]))  # one of the first, one of those that came later
    index.save(tmp_path / "a.index")
    index = load_search_index(tmp_path / "a.index")

    left = np.delete(np.concatenate([np.delete(rows, gone, axis=0), more]), [0, 640], axis=0)
    paths = np.delete([*np.delete(names(rows), gone), *new_names], [0, 640]).tolist()
    assert index.paths == paths and len(index) == 643 == len(index.snapshot)
    assert (index.labels[-49:] == 9).all() and index.labels[0] == 0
    found, cosines = index.search(queries, 10)
    if kind != "ivfpq":
        np.testing.assert_allclose(cosines, cosine(queries, left[found]), atol=1e-5)
    if kind == "exact":
        assert (found == nearest(queries, left, 10)[0]).all()
    assert measure_recall(index, queries, 10, left) > (0.55 if kind == "ivfpq" else 0.93)


@pytest.mark.parametrize("kind", INDEX_OPTIONS)
def test_a_search_in_a_class_compares_each_of_its_images(kind):
    rows, queries = make(600), make(20, seed=1)
    index = with_snapshot(rows, kind, np.arange(600) // 100)
    index.remove(np.arange(10, 20))
    assert (index.rows_of_class("3") == np.arange(290, 390)).all()
    found, cosines = index.search(queries, 100, class_name="3")
    assert (np.sort(found, axis=1) == np.arange(290, 390)).all()
    left = np.delete(rows, np.arange(10, 20), axis=0)
    if kind != "ivfpq":
        np.testing.assert_allclose(cosines, cosine(queries, left[found]), atol=1e-5)
    with pytest.raises(ValueError, match="1 to 100 neighbours"):
        index.search(queries, 101, class_name="3")
    assert len(index.rows_of_class("no such class")) == 0


@pytest.mark.parametrize("removed", [[600], [0], ["a"], [-1]])
def test_a_file_whose_removed_images_do_not_fit_is_refused(removed, tmp_path):
    rows = make(600)
    with_snapshot(rows, "hnsw").save(tmp_path / "a.index")
    with zipfile.ZipFile(tmp_path / "a.index") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    header = json.loads(parts["header.json"]) | {"removed": removed}
    with zipfile.ZipFile(tmp_path / "a.index", "w") as archive:
        for name, data in (parts | {"header.json": json.dumps(header)}).items():
            archive.writestr(name, data)
    with pytest.raises(ValueError, match="damaged or no search index"):
        load_search_index(tmp_path / "a.index")


def test_a_search_with_parameters_outlives_torch_s_methods_of_faiss():
    """pytorch-metric-learning imports them; in a process of its own, for nothing undoes that."""
    program = """
import faiss.contrib.torch_utils, numpy as np
from metric_learning.retrieval.indexes import build_index
rows = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
index = build_index(rows, list(map(str, range(300))), "hnsw")
index.removed = np.array([0])
print(index.search(rows[1:4], 1)[0].ravel().tolist())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == "[0, 1, 2]"
