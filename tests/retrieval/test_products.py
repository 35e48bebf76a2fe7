"""Products of the CPU against float64, within the errors that they promise."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from metric_learning.retrieval.counting.cpu import products, tiles
from metric_learning.retrieval.counting.cpu.instructions import PAIR_PRODUCTS, find_pair_product
from metric_learning.retrieval.counting.cpu.products import (
    FLOAT32,
    FLOAT64,
    SCREENS,
    SLICED,
    cosine_error,
)
from metric_learning.retrieval.counting.cpu.vectors import prepare
from metric_learning.retrieval.counting.thresholds import Share

NAMES = "numpy", "torch's BLAS", "float64", "int16", "two slices"
PRODUCTS = dict(zip(NAMES, (*FLOAT32, FLOAT64, *SCREENS, *SLICED), strict=False))
KINDS = ["random", "positive", "equal", "halves", "one large", "one only", "zero", "opposite"]
needs_int16 = pytest.mark.skipif(not SCREENS, reason="this CPU lacks the instructions")


def make_hard(kind, n, d):
    """Rows (n, d) float64 that are hard on a product."""
    rng = np.random.default_rng(d)
    rows = rng.standard_normal((n, d))
    if kind == "positive":  # no error of float32 cancels another
        rows = np.abs(rows)
    if kind == "equal":  # the same error in every dimension, along the row itself
        rows[:] = rng.uniform(0.1, 10, (n, 1))
    if kind == "halves":  # as far from integers as can be
        scale = 46340 - np.sqrt(d) / 2
        rows = np.rint(rows / np.linalg.norm(rows, axis=1, keepdims=True) * scale) + 0.5
    if kind == "one large":  # more than int16 holds at the usual scale
        rows[:, 0] = 3 * np.sqrt(d)
    if kind == "one only":
        rows = np.eye(d)[np.arange(n) % d] * rng.choice([-1, 1], (n, 1))
    if kind == "zero":
        rows[::2] = 0
    if kind == "opposite":  # the least sums of products
        rows[1::2] = -rows[::2]
    return rows


def multiply(product, queries, gallery):
    """Cosines (Q, G) and the bound of their error."""
    sides = [prepare(rows) for rows in (queries, gallery)]
    factors = [product.room(len(rows), rows.shape[1]) for rows in (queries, gallery)]
    errors = [
        product.fill(side, 0, len(side.rows), out) for side, out in zip(sides, factors, strict=True)
    ]
    shape = [-(-len(rows) // product.grain) * product.grain for rows in (queries, gallery)]
    out = np.full(shape, np.nan, product.dtype)
    product.multiply(*factors, len(queries), (0, len(gallery)), out)
    error = cosine_error(product, queries.shape[1], *errors)
    return out[: len(queries), : len(gallery)], error


def exact_cosines(queries, gallery):
    """Cosines in extended precision where NumPy has it; of a zero row 0."""
    sides = [np.asarray(rows, np.longdouble) for rows in (queries, gallery)]
    norms = [np.sqrt((rows**2).sum(1, keepdims=True)) for rows in sides]
    units = [rows / np.maximum(norm, 1e-300) for rows, norm in zip(sides, norms, strict=True)]
    return units[0] @ units[1].T


@pytest.mark.parametrize("product", PRODUCTS.values(), ids=PRODUCTS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("d", [1, 2, 3, 16, 33, 130, 512, 2048])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_errors_are_bounded(product, kind, d, dtype):
    rows = make_hard(kind, 146, d).astype(dtype)
    queries, gallery = rows[:66], rows[66:]
    cosines, error = multiply(product, queries, gallery)
    worst = np.abs(cosines - exact_cosines(queries, gallery)).max()
    assert worst <= (error or 1e-14)  # float64 counts as exact


@needs_int16
def test_the_bound_of_int16_can_be_reached():
    rows = np.ones((2, 500))
    cosines, error = multiply(SCREENS[0], rows, rows)
    assert np.abs(cosines - 1).max() > 0.99 * (error - 5e-7)
    assert error < 5e-4


@needs_int16
@pytest.mark.parametrize("kind", KINDS)
def test_int16_rounds_to_nearest(kind):
    rows = make_hard(kind, 20, 64)
    error = SCREENS[0].fill(prepare(rows), 0, 20, SCREENS[0].room(20, 64))
    assert error <= np.sqrt(64) / 2 / 32767 * 1.01


@needs_int16
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("d", [1, 2, 16, 512, 2048])
def test_two_slices_are_nearly_as_precise_as_float64(kind, d):
    rows = make_hard(kind, 20, d)
    error = SLICED[0].fill(prepare(rows), 0, 20, SLICED[0].room(20, d))
    assert error <= (5e-9 if d <= 16 else 2e-7)


@needs_int16
@pytest.mark.parametrize("product", [*SCREENS, *SLICED])
@pytest.mark.parametrize("d", [1, 2, 128, 70_000])
def test_the_longest_rows_do_not_overflow(product, d):
    rows = np.ones((2, d)) * [[1], [-1]]
    cosines, error = multiply(product, rows, rows)
    assert np.abs(cosines - [[1, -1], [-1, 1]]).max() <= error


@needs_int16
@pytest.mark.parametrize("shift", [0.499, 0.501])
def test_the_longest_second_slices_do_not_overflow(shift):
    """As far from the integers of the first slice as can be, all in one direction."""
    d = 128
    length = 46340 - np.sqrt(d) / 2
    rows = np.full((2, d), np.floor(length / np.sqrt(d)) + shift) * [[1], [-1]]
    rows[:, -1] *= np.sqrt(length**2 - (rows[0, :-1] ** 2).sum()) / rows[0, -1]
    cosines, error = multiply(SLICED[0], rows, rows)
    assert np.abs(cosines - [[1, -1], [-1, 1]]).max() <= error


@pytest.mark.parametrize("product", PRODUCTS.values(), ids=PRODUCTS)
@pytest.mark.parametrize(("first", "last"), [(0, 0), (0, 70), (70, 200), (60, 300), (0, 300)])
def test_columns_that_are_left_out_change_no_others(product, first, last):
    rows = prepare(np.random.default_rng(0).standard_normal((300, 20)))
    shape = tiles.Shape(100, 300, 100)
    whole, part = (
        tiles.Level(product, rows, rows, shape, lambda top, bottom, at=at: at, None)
        for at in ((0, 0), (first, last))
    )
    found = []
    for level in (whole, part):
        tile = level.tile(0, 100, 200, 0, 300)
        values = tile.values.reshape(-1, tile.stride)[:100, :300]
        found.append(np.delete(values, np.s_[first:last], 1))
    assert np.allclose(*found, rtol=0, atol=1e-6 if product.dtype == np.float32 else 1e-14)


def test_kept_factors_are_those_that_are_made_anew():
    vectors = prepare(np.random.default_rng(0).standard_normal((40, 5)))
    kept: dict = {}
    factors = [tiles.Factors(FLOAT64, vectors, 40, each) for each in (kept, kept, None)]
    found = [each.get(10, 30) for each in factors]
    assert found[0] is found[1] and list(kept) == [(10, 30)]
    assert np.array_equal(found[0][0], found[2][0][:20])


def test_an_imprecise_product_is_not_tried_for_some_tiles(monkeypatch):
    monkeypatch.setattr(tiles, "TILE", 16)
    monkeypatch.setattr(tiles, "BLOCK", 16)
    monkeypatch.setattr(tiles, "num_cores", lambda: 1)
    coarse = products.FloatProduct(products.multiply_by_numpy, pause=3)
    first_errors = []

    def make_visitor():
        def visit(versions, is_two_sided):
            tile = next(versions)
            first_errors.append(tile.error)
            if len(first_errors) == 2:
                assert next(versions).error == 0

        return visit

    rows = prepare(np.random.default_rng(0).standard_normal((64, 8)))
    every = 0, len(rows.rows)
    tiles.for_each_tile(rows, None, every, make_visitor, Share(), lambda: (coarse, FLOAT64))
    assert [error > 0 for error in first_errors] == [True] * 2 + [False] * 3 + [True] * 5


@pytest.mark.parametrize(("seconds", "is_used"), [(0.5, True), (0.9, False), (np.inf, False)])
def test_int16_is_used_where_it_is_faster(seconds, is_used, monkeypatch):
    screen = object()
    times = {screen: seconds, FLOAT32[0]: 2.0, FLOAT32[1]: 1.0}
    monkeypatch.setattr(products, "_seconds", times.__getitem__)
    monkeypatch.setattr(products, "SCREENS", (screen,))
    for function in (products.fastest_float32, products.ladder):
        monkeypatch.setattr(products, function.__name__, function.__wrapped__)  # not cached
    assert products.ladder() == (*[screen] * is_used, FLOAT32[1], FLOAT64)


@pytest.mark.parametrize(
    ("features", "name"),
    [
        ("+avx2,+avx512bw,-sse4a", "avx512bw"),
        ("+avx2,-avx512bw", "avx2"),
        ("-avx2,+neon", None),
        ("", None),
    ],
)
def test_the_instruction_is_one_of_the_cpu(features, name):
    assert find_pair_product(features) == (PAIR_PRODUCTS[name] if name else None)


@pytest.mark.parametrize(("seconds", "is_used"), [(1.5, True), (2.5, False), (np.inf, False)])
def test_two_slices_are_used_where_they_are_faster_than_float64(seconds, is_used, monkeypatch):
    sliced, float32 = object(), products.FloatProduct(products.multiply_by_numpy)
    times = {sliced: seconds, FLOAT64: 2.0}
    monkeypatch.setattr(products, "_seconds", times.__getitem__)
    monkeypatch.setattr(products, "SLICED", (sliced,))
    monkeypatch.setattr(products, "fastest_float32", lambda: float32)
    ladder = products.exact_ladder.__wrapped__()  # not cached
    assert ladder[-1] == FLOAT64
    assert ladder[0] == (sliced if is_used else replace(float32, pause=products.PAUSE))


@needs_int16
def test_avx2_gives_what_wider_vectors_give(tmp_path):
    rows = np.random.default_rng(0).standard_normal((20, 300))
    np.save(tmp_path / "rows.npy", rows)
    code = (
        "import numpy as np; from test_products import multiply, SCREENS, SLICED;"
        "rows = np.load('rows.npy');"
        "np.save('found.npy', [multiply(p[0], rows, rows)[0] for p in (SCREENS, SLICED)])"
    )
    folders = Path(__file__).parent, Path(__file__).parents[2]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, folders)),
        "NUMBA_CPU_NAME": "haswell",
        "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma,+sse4.2",
        "NUMBA_CACHE_DIR": str(tmp_path),
    }
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    screened, sliced = np.load(tmp_path / "found.npy")
    assert np.array_equal(screened, multiply(SCREENS[0], rows, rows)[0])
    assert np.allclose(sliced, multiply(SLICED[0], rows, rows)[0], rtol=0, atol=1e-15)
