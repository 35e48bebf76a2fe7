"""Exact ranks against their definition in float64, however they are computed."""

import numpy as np
import pytest
import torch
from oracle import make, oracle_ranks, unit

from metric_learning.retrieval import ranks, score_queries
from metric_learning.retrieval.counting import by_torch, choose
from metric_learning.retrieval.counting.cpu import compiled, kernels, tiles, vectors
from metric_learning.retrieval.counting.cpu.products import FLOAT32, FLOAT64, SCREENS, SLICED
from metric_learning.retrieval.counting.thresholds import Share, Thresholds
from metric_learning.retrieval.inputs import find_own_rows

KINDS = [
    "random",
    "clustered",
    "tied",
    "duplicated",
    "collapsed",
    "nearly collapsed",
    "near ties",
    "large classes",
    "one image each",
]

LADDERS = {
    "int16": (*SCREENS, FLOAT32[0], FLOAT64),
    "numpy": (FLOAT32[0], FLOAT64),
    "torch's BLAS": (FLOAT32[1], FLOAT64),
}


EXACT_LADDERS = {
    "int16": (*SLICED, FLOAT64),
    "numpy": (FLOAT32[0], FLOAT64),
    "torch's BLAS": (FLOAT64,),
}


@pytest.fixture(params=[*LADDERS, "torch", *(["cuda"] if torch.cuda.is_available() else [])])
def device(request, monkeypatch):
    """Each way of counting, as `conftest.device`, and on the CPU from each product on."""
    if request.param in LADDERS:
        monkeypatch.setattr(compiled, "ladder", lambda: LADDERS[request.param])
        monkeypatch.setattr(compiled, "exact_ladder", lambda: EXACT_LADDERS[request.param])
        return "cpu"
    if request.param == "torch":
        monkeypatch.setattr(choose, "CpuCounter", None)
        return "cpu"
    return "cuda"


def found_ranks(queries, labels, gallery=None, gallery_labels=None, **options):
    """Query row -> (ranks, untied ranks)."""
    gallery_labels = labels if gallery is None else gallery_labels
    return as_dict(ranks.iterate_ranks(queries, labels, gallery, gallery_labels, **options))


def as_dict(parts):
    """What was yielded, as `oracle_ranks` gives it."""
    found = {}
    for part in parts:
        for query, start, stop in zip(
            part.queries, part.offsets[:-1], part.offsets[1:], strict=True
        ):
            own = slice(start, stop)
            found[int(query)] = part.ranks[own].tolist(), part.untied_ranks[own].tolist()
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "d"), [(2, 1), (3, 2), (40, 3), (300, 16), (1000, 300)])
def test_self_retrieval_equals_brute_force(kind, n, d, device):
    rows, labels = make(kind, n, d)
    assert found_ranks(rows, labels, device=device) == oracle_ranks(rows, labels)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "d"), [(6, 1), (300, 16), (1800, 24)])
def test_query_gallery_equals_brute_force(kind, n, d, device):
    rows, labels = make(kind, n, d)
    split = rows[: n // 3], labels[: n // 3], rows[n // 3 :], labels[n // 3 :]
    assert found_ranks(*split, device=device) == oracle_ranks(*split)


@pytest.mark.parametrize("kind", ["clustered", "tied", "near ties"])
def test_many_tiles_equal_brute_force(kind, device):
    rows, labels = make(kind, 5000, 32)
    assert found_ranks(rows, labels, device=device) == oracle_ranks(rows, labels)


@pytest.mark.parametrize("kind", ["random", "tied", "large classes"])
def test_small_tiles_and_pieces_change_nothing(kind, device, monkeypatch):
    rows, labels = make(kind, 200, 5)
    monkeypatch.setattr(tiles, "TILE", 48)
    monkeypatch.setattr(tiles, "BLOCK", 96)
    monkeypatch.setattr(by_torch, "TILE_ROWS", 7)
    monkeypatch.setitem(by_torch.TILE_ELEMENTS, "cpu", 100)
    expected = oracle_ranks(rows, labels)
    assert found_ranks(rows, labels, device=device) == expected
    monkeypatch.setattr(ranks, "LEAST_BYTES", 0)  # few queries at a time
    pieces = list(ranks.iterate_ranks(rows, labels, None, labels, device))
    assert len(pieces) > 5
    assert found_ranks(rows, labels, device=device) == expected


@pytest.mark.parametrize("is_split", [False, True])
def test_a_gallery_that_is_normalised_once_ranks_the_same(is_split, monkeypatch):
    rows, labels = make("near ties", 300, 9)
    data = (rows[:100], labels[:100], rows[100:], labels[100:]) if is_split else (rows, labels)
    monkeypatch.setattr(choose, "CpuCounter", None)
    monkeypatch.setattr(by_torch, "TILE_ROWS", 16)
    monkeypatch.setitem(by_torch.TILE_ELEMENTS, "cpu", 1000)
    normalise, sizes = by_torch._normalised, []

    def count_rows(vectors, norms, rows, dtype):
        if dtype == torch.float32:
            sizes.append(len(rows))
        return normalise(vectors, norms, rows, dtype)

    monkeypatch.setattr(by_torch, "_normalised", count_rows)
    for free in (0, 10**9):
        sizes.clear()
        monkeypatch.setattr(by_torch, "free_memory", lambda free=free: free)
        assert found_ranks(*data) == oracle_ranks(*data)
        num_queries, num_images = len(data[0]), len(data[-2])
        once = num_queries + num_images
        assert sum(sizes) == once if free else sum(sizes) > 4 * once


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", LADDERS)
def test_threads_and_products_change_nothing(threads, name, monkeypatch):
    rows, labels = make("clustered", 1500, 40)
    monkeypatch.setattr(tiles, "num_cores", lambda: threads)
    monkeypatch.setattr(tiles, "TILE", 128)
    monkeypatch.setattr(compiled, "ladder", lambda: LADDERS[name])
    assert found_ranks(rows, labels) == oracle_ranks(rows, labels)


@pytest.mark.parametrize("is_split", [False, True])
def test_shares_of_the_work_add_up(is_split, device, monkeypatch):
    monkeypatch.setattr(tiles, "TILE", 48)
    rows, labels = make("clustered", 400, 8)
    data = (rows[:150], labels[:150], rows[150:], labels[150:]) if is_split else (rows, labels)
    sums: list[list[np.ndarray]] = [[], []]

    def keep(array):
        sums[rank].append(array.copy())
        return array

    for rank in range(2):
        found_ranks(*data, device=device, share=Share(rank, 2, keep))
    totals = iter([first + second for first, second in zip(*sums, strict=True)])
    shared = found_ranks(*data, device=device, share=Share(0, 2, lambda _: next(totals)))
    assert shared == oracle_ranks(*data)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_order_of_many_positives_is_kept(kind, dtype, device):
    """More positives than are counted one by one, in both ways of counting."""
    rows, labels = make(kind, 400, 6)
    labels = labels % 2
    rows = rows.astype(dtype)
    assert found_ranks(rows, labels, device=device) == oracle_ranks(rows, labels)


@pytest.mark.parametrize("kind", ["random", "clustered", "near ties", "duplicated"])
@pytest.mark.parametrize("d", [1, 2, 33, 300, 2048])
def test_many_positives_of_any_dimension_equal_brute_force(kind, d, device):
    rows, labels = make(kind, 600, d)
    labels = labels % 3
    rows[5] = rows[8] = 0
    assert found_ranks(rows, labels, device=device) == oracle_ranks(rows, labels)


@pytest.mark.parametrize("distance", [0.9e-9, 1.1e-9, 3e-9, 1e-8, 1e-7])
def test_many_positives_tie_within_the_tolerance_alone(distance, device):
    """Similarities to the first image in steps near the tolerance, which float32 does not hold."""
    n = 300
    cosines = 0.5 + distance * np.arange(n)
    rows = np.zeros((n + 1, 3))
    rows[0, 0] = 1
    rows[1:, 0], rows[1:, 1] = cosines, np.sqrt(1 - cosines**2)
    labels = np.append(0, np.arange(n) % 2)
    found = found_ranks(rows[:1], labels[:1], rows[1:], labels[1:], device=device)
    assert found == oracle_ranks(rows[:1], labels[:1], rows[1:], labels[1:])


@pytest.mark.parametrize("kind", ["clustered", "tied", "near ties"])
def test_pieces_of_queries_with_many_positives_change_nothing(kind, device, monkeypatch):
    rows, labels = make(kind, 500, 24)
    labels = labels % 2
    expected = oracle_ranks(rows, labels)
    monkeypatch.setattr(ranks, "LEAST_BYTES", ranks.BYTES_PER_POSITIVE * 12_000)
    monkeypatch.setattr(tiles, "WIDE_ROWS", 16)
    monkeypatch.setattr(tiles, "WIDE_COLUMNS", (192, 192))  # some lie in a class, some do not
    assert len(list(ranks.iterate_ranks(rows, labels, None, labels, device))) > 5
    assert found_ranks(rows, labels, device=device) == expected


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_and_shares_of_many_positives_change_nothing(threads, monkeypatch):
    rows, labels = make("clustered", 800, 12)
    labels = labels % 4
    monkeypatch.setattr(tiles, "num_cores", lambda: threads)
    monkeypatch.setattr(tiles, "WIDE_ROWS", 16)
    monkeypatch.setattr(tiles, "WIDE_BLOCK", 48)
    expected = oracle_ranks(rows, labels)
    assert found_ranks(rows, labels) == expected

    sums: list[list[np.ndarray]] = [[], []]
    for rank in range(2):
        keep = Share(rank, 2, lambda array, rank=rank: sums[rank].append(array) or array)
        found_ranks(rows, labels, share=keep)
    totals = iter([first + second for first, second in zip(*sums, strict=True)])
    assert found_ranks(rows, labels, share=Share(0, 2, lambda _: next(totals))) == expected


@pytest.mark.parametrize(("most", "is_kept"), [(300 * 8, True), (300 * 8 - 1, False)])
def test_factors_of_a_large_gallery_are_not_kept(most, is_kept, monkeypatch):
    rows, labels = make("clustered", 300, 8)
    labels = labels % 2
    counters = []
    monkeypatch.setattr(compiled, "MOST_KEPT", most)
    monkeypatch.setattr(ranks, "choose_counter", lambda q, g, _: keep(compiled.CpuCounter(q, g)))

    def keep(counter):
        counters.append(counter)
        return counter

    assert found_ranks(rows, labels) == oracle_ranks(rows, labels)
    assert bool(counters[0].kept) == is_kept


@pytest.mark.parametrize("kind", ["clustered", "duplicated"])
def test_queries_leave_themselves_out_of_many_positives(kind, device):
    rows, labels = make(kind, 700, 8)
    labels = labels % 2
    is_query = np.arange(700) % 3 == 0
    own_rows = np.where(np.arange(is_query.sum()) % 2, np.flatnonzero(is_query), -1)
    found = found_ranks(
        rows[is_query], labels[is_query], rows, labels, device=device, own_rows=own_rows
    )
    expected = {}
    for query, row in enumerate(np.flatnonzero(is_query)):
        kept = np.arange(700) != own_rows[query]
        one = oracle_ranks(rows[[row]], labels[[row]], rows[kept], labels[kept])
        expected[query] = one[0]
    assert found == expected


@pytest.mark.parametrize("kind", ["random", "clustered", "tied", "collapsed"])
def test_queries_of_few_and_of_many_positives_stand_side_by_side(kind, device, monkeypatch):
    rows, labels = make(kind, 700, 12)
    labels = np.where(labels % 2, labels, 0)  # one class is half of all images
    monkeypatch.setattr(tiles, "WIDE_ROWS", 16)
    monkeypatch.setattr(tiles, "WIDE_BLOCK", 48)
    monkeypatch.setattr(tiles, "WIDE_COLUMNS", (96, 96))
    assert found_ranks(rows, labels, device=device) == oracle_ranks(rows, labels)
    split = rows[:200], labels[:200], rows[200:], labels[200:]
    assert found_ranks(*split, device=device) == oracle_ranks(*split)


@pytest.mark.parametrize("threads", [(1, 3), (4, 2)])
def test_processes_with_other_numbers_of_threads_cut_the_work_alike(threads, monkeypatch):
    rows, labels = make("clustered", 900, 8)
    monkeypatch.setattr(tiles, "TILE", 48)
    sums: list[list[np.ndarray]] = [[], []]
    for rank, number in enumerate(threads):
        monkeypatch.setattr(tiles, "num_cores", lambda number=number: number)
        keep = Share(rank, 2, lambda array, rank=rank: sums[rank].append(array) or array, 1)
        found_ranks(rows, labels, share=keep)
    totals = iter([first + second for first, second in zip(*sums, strict=True)])
    shared = found_ranks(rows, labels, share=Share(0, 2, lambda _: next(totals), 1))
    assert shared == oracle_ranks(rows, labels)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_split", [False, True])
def test_ranks_of_similarities_equal_brute_force(kind, is_split):
    rows, labels = make(kind, 90, 4)
    data = (rows[:30], labels[:30], rows[30:], labels[30:]) if is_split else (rows, labels)
    asking, asked = unit(data[0]), unit(data[2] if is_split else rows)
    chunks = [
        (slice(i, min(i + 25, len(asking))), asking[i : i + 25] @ asked.T)
        for i in range(0, len(asking), 25)
    ]
    gallery_labels = data[3] if is_split else labels
    own_rows = None if is_split else np.arange(90)
    parts = ranks.ranks_of_similarities(chunks, data[1], gallery_labels, own_rows)
    assert as_dict(parts) == oracle_ranks(*data)


def test_memory_mapped_embeddings_are_not_copied(tmp_path):
    rows, labels = make("clustered", 300, 16)
    np.save(tmp_path / "features.npy", rows)
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r")
    prepared = vectors.prepare(np.asarray(mapped)).rows
    assert np.shares_memory(prepared, mapped) and compiled.is_mapped(prepared)
    assert not compiled.is_mapped(rows)
    assert found_ranks(mapped, labels) == oracle_ranks(rows, labels)


def test_torch_keeps_its_threads_and_precision(monkeypatch):
    rows, labels = make("random", 100, 4)
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    found_ranks(rows, labels)
    monkeypatch.setattr(choose, "CpuCounter", None)
    found_ranks(rows, labels)
    assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == before


def test_the_undecided_share_is_estimated_from_some_rows():
    values = np.random.default_rng(0).standard_normal((40, 48)).astype(np.float32)
    embedded = vectors.Vectors(values, np.ones(40), np.arange(40))
    tile = vectors.Tile(values.reshape(-1), 0.1, 48, 40, 48, 0, 0)
    places = np.arange(40), np.arange(40), np.arange(1, 41), np.arange(40)
    cosines = values[:, 0].astype(np.float64)
    thresholds = Thresholds(np.arange(41), cosines, 1e-9, *places)
    rows = range(0, 40, 40 // kernels.SAMPLED_ROWS)
    near = [np.abs(values[r] - values[r, 0]) <= 0.1 for r in rows]
    found = kernels.undecided_share(tile, embedded, thresholds)
    assert found == pytest.approx(np.mean(near), abs=1e-6)


@pytest.mark.parametrize("scale", [1e-200, 1e-160, 1e155, 1e300])
def test_float64_embeddings_may_be_of_any_scale(scale, device):
    rows, labels = make("clustered", 60, 8)
    far = rows.astype(np.float64) * scale
    expected = score_queries(rows.astype(np.float64), labels, (1,), device=device)
    found = score_queries(far, labels, (1,), device=device)
    assert found.first_rank.tolist() == expected.first_rank.tolist()


def test_an_error_in_a_thread_stops_the_others(monkeypatch):
    rows, labels = make("random", 4000, 8)
    monkeypatch.setattr(tiles, "num_cores", lambda: 2)
    monkeypatch.setattr(tiles, "TILE", 128)
    monkeypatch.setattr(tiles, "BLOCK", 128)
    visited = []

    def make_visitor():
        def visit(versions, is_two_sided):
            visited.append(next(versions))
            raise KeyError("broken")

        return visit

    with pytest.raises(KeyError):
        tiles.for_each_tile(
            vectors.prepare(rows),
            None,
            (0, len(rows)),
            make_visitor,
            Share(),
            lambda: LADDERS["numpy"],
        )
    assert len(visited) <= 2


@pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch before 2.9"
)
def test_the_new_precision_switch_is_kept(monkeypatch):
    rows, labels = make("random", 100, 4)
    monkeypatch.setattr(choose, "CpuCounter", None)
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        assert found_ranks(rows, labels) == oracle_ranks(rows, labels)
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.parametrize("kind", ["clustered", "tied", "duplicated"])
def test_queries_that_the_gallery_holds_leave_themselves_out(kind, device):
    rows, labels = make(kind, 60, 8)
    is_query, is_gallery = np.arange(60) % 2 == 0, np.arange(60) % 3 > 0
    own_rows = find_own_rows(is_query, is_gallery)
    found = found_ranks(
        rows[is_query],
        labels[is_query],
        rows[is_gallery],
        labels[is_gallery],
        device=device,
        own_rows=own_rows,
    )
    expected = {}
    for query, row in enumerate(np.flatnonzero(is_query)):
        kept = is_gallery.copy()
        kept[row] = False
        one = oracle_ranks(rows[[row]], labels[[row]], rows[kept], labels[kept])
        if one:
            expected[query] = one[0]
    assert found == expected and (own_rows >= 0).sum() == 20
    assert find_own_rows(is_query, ~is_query) is None
