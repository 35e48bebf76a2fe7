"""The benchmark of retrieval: its methods against the definitions, its arithmetic, a whole run."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from benchmarks.speed import retrieval, retrieval_methods
from benchmarks.speed.retrieval import main, make_embeddings, measure_apart, num_queries, table
from benchmarks.speed.retrieval_methods import METHODS, Method, measure, without_self

ROOT = Path(__file__).resolve().parents[2]
HAS_PML = find_spec("pytorch_metric_learning") is not None
INSTALLED = ["floor", "this", "faiss", *(["pml"] if HAS_PML else []), "reference"]


def definitions(embeddings, labels, queries):
    """Recall@K and MAP@R of the first queries, image after image in float64."""
    unit = embeddings.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    rows = []
    for query in range(queries):
        others = [row for row in np.argsort(-(unit @ unit[query])) if row != query]
        hits = [labels[row] == labels[query] for row in others]
        total = sum(hits)
        row = {f"recall@{k}": float(any(hits[:k])) for k in (1, 10, 100, 1000)}
        within = [sum(hits[: n + 1]) / (n + 1) for n in range(total) if hits[n]]
        rows.append(row | {"map@r": sum(within) / total, "r_precision": len(within) / total})
    return {name: np.mean([row[name] for row in rows]) for name in rows[0]}


@pytest.mark.parametrize("name", INSTALLED[1:])
def test_methods_equal_the_definitions(name):
    embeddings, labels = make_embeddings(300, 16)
    found = METHODS[name].prepare(embeddings, labels)(300)
    expected = definitions(embeddings, labels, 300)
    assert "recall@1" in found
    assert found == pytest.approx({key: expected[key] for key in found}, rel=1e-9)


@pytest.mark.parametrize("name", ["faiss", "reference"])
def test_a_share_of_the_queries_searches_all_images(name):
    embeddings, labels = make_embeddings(200, 8, seed=1)
    found = METHODS[name].prepare(embeddings, labels)(30)
    expected = definitions(embeddings, labels, 30)
    assert found == pytest.approx({key: expected[key] for key in found}, rel=1e-9)


def test_the_query_is_dropped_by_its_row_wherever_it_is():
    neighbours = np.array([[0, 4, 5], [7, 1, 6], [8, 9, 3]])
    assert without_self(neighbours, np.arange(3)).tolist() == [[4, 5], [7, 6], [8, 9]]


def test_embeddings_are_like_those_of_products():
    embeddings, labels = make_embeddings(6000, 64, seed=3)
    sizes = np.bincount(labels)
    assert embeddings.shape == (6000, 64) and embeddings.dtype == np.float32
    assert sizes.min() >= 2 and sizes.max() <= 13
    assert np.mean(sizes) == pytest.approx(5.35, abs=0.2)
    assert np.array_equal(embeddings, make_embeddings(6000, 64, seed=3)[0])
    assert min(np.bincount(make_embeddings(size, 2, size)[1]).min() for size in range(2, 60)) == 2


def test_only_the_time_of_the_search_is_scaled(monkeypatch):
    clocks = iter(np.array([[10.0, 100.0], [11.0, 102.0], [13.0, 106.0]]))
    monkeypatch.setattr(retrieval_methods, "clocks", lambda: next(clocks))
    method = Method(lambda embeddings, labels: lambda num_queries: {})
    found = measure(method, np.ones((50, 2), np.float32), np.zeros(50, int), 5)
    assert found["cpu_seconds"] == 1 + 2 * 10 and found["wall_seconds"] == 2 + 4 * 10


MEASURED = """
import numpy as np
from benchmarks.speed.retrieval_methods import Method, measure

def prepare(embeddings, labels):
    return lambda num_queries: {"sum": np.ones(num_queries * 10**6).sum()}  # freed at once

np.ones(2 * 10**7)  # an earlier, higher peak
found = measure(Method(prepare), np.ones((10, 2), np.float32), np.zeros(10, int), 10)
print(found["peak_bytes"])
"""


def test_memory_is_the_peak_of_the_measured_search():
    """In a process of its own: the memory that others have freed would be taken again unseen."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert 75e6 < int(done.stdout) < 100e6


def test_shares_are_for_large_data_sets():
    assert num_queries("reference", 4000) == 4000
    assert num_queries("reference", 60502) == 1210
    assert num_queries("this", 60502) == 60502


def test_table_says_what_was_scaled_and_what_failed(tmp_path):
    failed = measure_apart(retrieval.sys.executable, "this", str(tmp_path), 5)
    assert failed["failure"].startswith("failed with exit status 1: FileNotFoundError")
    rounds = [
        {"cpu_seconds": cpu, "wall_seconds": 1.5, "peak_bytes": 2**21, "found": {"recall@1": 0.5}}
        for cpu in (8.0, 6.0)
    ]
    found = {
        "floor": [{**rounds[0], "cpu_seconds": 3.0, "found": {}}],
        "oml": rounds,
        "this": [failed],
    }
    lines = table(1000, 256, {"floor": 1000, "oml": 100, "this": 1000}, found).splitlines()
    assert lines[0] == "### 1,000 images, 256 dimensions (1 MiB)"
    assert lines[4] == "| floor | 1,000 | 3.00 | 1.00 | 1.50 | 2 |  |  | 3.00 |"
    assert lines[5] == (
        "| oml | 100, scaled | 6.00 | 2.00 | 1.50 | at least 2 | 50.000 |  | 8.00, 6.00 |"
    )
    assert lines[6].startswith("| this | failed with exit status 1")
    assert len({line.count("|") for line in lines[2:]}) == 1


def test_whole_run(capsys):
    methods = f"--methods={','.join(INSTALLED)}"
    [rows] = main(["--sizes=300", "--dims=16", "--rounds=1", methods])
    found = {name: rounds[0]["found"] for name, rounds in rows.items()}
    expected = definitions(*make_embeddings(300, 16), 300)
    for name in INSTALLED[1:]:
        assert found[name]["recall@1"] == pytest.approx(expected["recall@1"], rel=1e-9)
    for name in INSTALLED[1:-1]:
        assert found[name]["map@r"] == pytest.approx(expected["map@r"], rel=1e-9)
    for [measured] in rows.values():
        assert measured["cpu_seconds"] >= 0 and measured["wall_seconds"] > 0
        assert measured["versions"]["numpy"] == np.__version__
    printed = capsys.readouterr().out
    for name in INSTALLED:
        assert f"\n| {name} | 300 |" in printed and f"\n- `{name}`: " in printed


@pytest.mark.skipif(find_spec("oml") is not None, reason="open-metric-learning is installed")
def test_a_missing_package_is_said_in_the_table(capsys):
    main(["--methods=oml", "--sizes=300", "--dims=4"])
    assert "| oml | failed with exit status 1: ModuleNotFoundError" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--methods=this,thas", "found 'thas'"),
        ("--oml_python=/no/such/python", "/no/such/python: No such file"),
    ],
)
def test_wrong_flags_are_one_line(flag, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([flag])
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
