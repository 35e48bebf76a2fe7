"""Ways to compute a tile of cosines on the CPU, of different speed and precision."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Protocol

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from metric_learning.retrieval.counting.cpu.instructions import PAIR_PRODUCT
from metric_learning.retrieval.counting.cpu.screen import Int16Product
from metric_learning.retrieval.counting.cpu.sliced import SlicedProduct
from metric_learning.retrieval.counting.cpu.vectors import Vectors, normalise, prepare
from metric_learning.retrieval.counting.thresholds import rounding_error

TIMED_ROWS, TIMED_DIM = 768, 256  # of the tile by which products are compared
PAUSE = 31  # as `Product.pause`, of float32 where float64 follows
WORTH = 0.85  # of the time of float32, that int16 may take: it leaves more to be decided again


class Product(Protocol):
    """A way to compute the cosines of some rows with some columns, on one thread."""

    @property
    def dtype(self) -> Any:
        """Of the cosines; float64 counts as exact."""

    @property
    def grain(self) -> int:
        """Rows and columns are multiplied in multiples of so many."""

    @property
    def pause(self) -> int:
        """Tiles that are not tried after one that was too imprecise; the next ones are alike."""

    def room(self, num_vectors: int, dim: int) -> Any:
        """Return memory for so many vectors, in the form that `multiply` takes."""

    def fill(self, vectors: Vectors, start: int, stop: int, out: Any) -> float:
        """Normalise vectors start..stop, in order, and write them to such memory.

        Returns the greatest Euclidean distance of a vector from its written form.
        """

    def multiply(
        self, rows: Any, columns: Any, height: int, part: tuple[int, int], out: np.ndarray
    ) -> None:
        """Write the cosines of so many rows with columns part[0]..part[1] to their place in `out`.

        The first is a multiple of the grain. Cosines that the grain adds mean nothing.
        """

    def rounding_error(self, dim: int) -> float:
        """Bound the error of a product of two vectors that `fill` wrote."""


@dataclass(frozen=True)
class FloatProduct:
    """A Product in floating point; `matmul` writes rows @ columns.T to its third argument."""

    matmul: Callable[[np.ndarray, np.ndarray, np.ndarray], None]
    dtype: Any = np.float32
    grain: int = 1
    pause: int = 0

    def room(self, num_vectors: int, dim: int) -> np.ndarray:
        """See Product; (num_vectors, dim)."""
        return np.empty((num_vectors, dim), self.dtype)

    def fill(self, vectors: Vectors, start: int, stop: int, out: np.ndarray) -> float:
        """See Product; that float32 rounds is part of `rounding_error`."""
        normalise(vectors, start, stop, out[: stop - start])
        return 0.0

    def multiply(
        self,
        rows: np.ndarray,
        columns: np.ndarray,
        height: int,
        part: tuple[int, int],
        out: np.ndarray,
    ) -> None:
        """See Product."""
        places = slice(*part)
        self.matmul(rows[:height], columns[places], out[:height, places])

    def rounding_error(self, dim: int) -> float:
        """See Product."""
        return 0.0 if self.dtype == np.float64 else rounding_error(dim, self.dtype)


def multiply_by_numpy(rows: np.ndarray, columns: np.ndarray, out: np.ndarray) -> None:
    """Write rows @ columns.T to `out`, by NumPy's BLAS."""
    np.matmul(rows, columns.T, out=out)


def multiply_by_torch(rows: np.ndarray, columns: np.ndarray, out: np.ndarray) -> None:
    """Write rows @ columns.T to `out`, by torch's BLAS."""
    torch.mm(torch.from_numpy(rows), torch.from_numpy(columns).T, out=torch.from_numpy(out))


FLOAT64 = FloatProduct(multiply_by_torch, np.float64)
FLOAT32 = (FloatProduct(multiply_by_numpy), FloatProduct(multiply_by_torch))
SCREENS = (Int16Product(),) if PAIR_PRODUCT else ()  # less precise than float32
SLICED: tuple[Product, ...] = (SlicedProduct(),) if PAIR_PRODUCT else ()  # more precise


def cosine_error(product: Product, dim: int, row_error: float, column_error: float) -> float:
    """Bound the error of a product's cosines, given those of its rows and of its columns.

    Of unit vectors x and y, written as x - e and y - f: |x y - (x - e) (y - f)| = |e y + (x - e) f|
    <= |e| + (1 + |e|) |f| (Cauchy-Schwarz).
    """
    return row_error + (1 + row_error) * column_error + product.rounding_error(dim)


@cache
def fastest_float32() -> FloatProduct:
    """Return the product of float32 that is faster on this CPU."""
    seconds = {product: _seconds(product) for product in FLOAT32}
    assert min(seconds.values()) < np.inf
    return min(seconds, key=seconds.__getitem__)


@cache
def ladder() -> tuple[Product, ...]:
    """Return the products to be tried one after the other, from fast to exact."""
    float32 = fastest_float32()
    limit = WORTH * _seconds(float32)
    screens = [s for s in SCREENS if _seconds(s) < limit]
    return (*screens, float32, FLOAT64)


@cache
def exact_ladder() -> tuple[Product, ...]:
    """Return the products for thresholds so many that few similarities are far from all of them."""
    sliced = [s for s in SLICED if _seconds(s) < _seconds(FLOAT64)]
    return (*sliced, FLOAT64) if sliced else (replace(fastest_float32(), pause=PAUSE), FLOAT64)


def _seconds(product: Product) -> float:
    """Time a tile; infinite where an error exceeds its bound."""
    rng = np.random.default_rng(0)
    sides = [prepare(rng.standard_normal((TIMED_ROWS, TIMED_DIM), np.float32)) for _ in range(2)]
    factors = [product.room(TIMED_ROWS, TIMED_DIM) for _ in sides]
    errors = [product.fill(v, 0, TIMED_ROWS, out) for v, out in zip(sides, factors, strict=True)]
    size = -(-TIMED_ROWS // product.grain) * product.grain
    out = np.empty((size, size), product.dtype)

    times = []
    for _ in range(4):
        started = time.perf_counter()
        product.multiply(factors[0], factors[1], TIMED_ROWS, (0, TIMED_ROWS), out)
        times.append(time.perf_counter() - started)

    rows, columns = (v.rows / v.norms[:, None] for v in sides)
    error = np.abs(out[:TIMED_ROWS, :TIMED_ROWS] - rows @ columns.T).max()
    bound = cosine_error(product, TIMED_DIM, *errors) or rounding_error(TIMED_DIM, np.float64)
    return min(times) if error < bound else np.inf


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Keep the BLAS libraries from starting threads of their own."""
    before = torch.get_num_threads()
    try:
        with threadpool_limits(1):
            torch.set_num_threads(1)
            yield
    finally:
        torch.set_num_threads(before)
