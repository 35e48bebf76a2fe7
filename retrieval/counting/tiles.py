"""Similarities of all pairs on the CPU, tile by tile, by as many threads as there are cores.

No matrix of all pairs exists: a thread multiplies two blocks of normalised embeddings, hands the
tile to a visitor and forgets it. In self-retrieval the matrix is symmetric, and only the tiles on
and above its diagonal are computed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from queue import Empty, SimpleQueue
from threading import Event, RLock

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from retrieval.counting.precision import full_precision
from retrieval.counting.truth import Share, rounding_error
from retrieval.counting.vectors import Tile, Vectors, normalise, row_norms

TILE = 768  # rows and columns of a tile: large enough for a fast product
LEAST_ROWS = 64  # of a block of queries, where few queries are shared among many threads
PADDING = 16  # columns between rows, against cache conflicts when columns are read
BLOCK = 3 * TILE  # rows that are normalised once for all their tiles
ONE_JOB = RLock()  # the number of threads of the BLAS libraries is one for the whole process


# Called with each tile, whether its columns are to be seen as queries as well (the mirrored tile
# is not computed), and a function that gives the same tile in float64.
Visitor = Callable[[Tile, bool, Callable[[], Tile]], None]


def num_cores() -> int:
    """Number of threads to use: as torch was told, by OMP_NUM_THREADS or torch.set_num_threads."""
    return max(1, min(torch.get_num_threads(), os.cpu_count() or 1))


def prepare(embeddings: np.ndarray) -> Vectors:
    """Compute the norms of embeddings (N, D); rows of float32 or float64 are not copied."""
    dtype = np.float64 if embeddings.dtype == np.float64 else np.float32
    rows = np.ascontiguousarray(embeddings, dtype)
    norms = np.empty(len(rows))
    row_norms(rows, norms)
    return Vectors(rows, norms, np.arange(len(rows)))


def for_each_tile(
    queries: Vectors,
    gallery: Vectors | None,
    query_range: tuple[int, int],
    make_visitor: Callable[[], Visitor],
    share: Share,
) -> None:
    """Let visitors see the similarities of queries with the gallery.

    Args:
        queries: (Q, D).
        gallery: (G, D); None: the queries are the gallery and all are asked, so that tiles below
            the diagonal are left out and those above it count for both sides.
        query_range: first query and the one behind the last.
        make_visitor: called once per thread.
        share: of the tiles that this process computes.
    """
    columns = queries if gallery is None else gallery
    start, stop = query_range
    cores = max(1, min(num_cores(), len(columns.rows) // (2 * TILE)))
    unit = LEAST_ROWS if gallery is not None else TILE
    height = -(-(stop - start) // (cores * share.size * (1 if gallery is not None else 4)))
    height = min(BLOCK, -(-height // unit) * unit)
    blocks = [(row, min(row + height, stop)) for row in range(start, stop, height)]
    tasks: SimpleQueue[tuple[int, int]] = SimpleQueue()
    for block in blocks[share.rank :: share.size]:  # those with most tiles first
        tasks.put(block)
    has_stopped = Event()

    def work() -> None:
        workspace = Workspace(queries, columns, gallery is None, height, product, has_stopped)
        visitor = make_visitor()
        while not has_stopped.is_set():
            try:
                block = tasks.get_nowait()
            except Empty:
                return
            workspace.visit_block(*block, visitor)

    with ONE_JOB, one_thread_each(), full_precision():
        product = fastest_product()
        with ThreadPoolExecutor(cores, initializer=_use_one_thread) as pool:
            try:
                for future in [pool.submit(work) for _ in range(cores)]:
                    future.result()
            except BaseException:  # an error of one thread, or Ctrl-C
                has_stopped.set()
                raise


class Workspace:
    """The buffers of one thread: a block of queries, some columns, a tile."""

    def __init__(
        self,
        queries: Vectors,
        columns: Vectors,
        is_symmetric: bool,
        height: int,
        product: Callable[[np.ndarray, np.ndarray, np.ndarray], object],
        has_stopped: Event,
    ) -> None:
        self.queries, self.columns, self.is_symmetric = queries, columns, is_symmetric
        self.product, self.has_stopped = product, has_stopped
        dim = queries.rows.shape[1]
        self.block = np.empty((height, dim), np.float32)
        self.factors = np.empty((TILE, dim), np.float32)
        self.tile = np.empty((TILE, TILE + PADDING), np.float32)

    def visit_block(self, start: int, stop: int, visitor: Visitor) -> None:
        """Visit the tiles of queries start..stop, column after column."""
        block = self._normalised(self.queries, start, stop, self.block)
        num_columns = len(self.columns.rows)
        for left in range(start if self.is_symmetric else 0, num_columns, TILE):
            if self.has_stopped.is_set():
                return
            right = min(left + TILE, num_columns)
            factors = self._normalised(self.columns, left, right, self.factors)
            for top in range(start, stop, TILE):
                if self.is_symmetric and top > left:
                    break
                bottom = min(top + TILE, stop)
                self._multiply(block[top - start : bottom - start], factors, self.tile)
                size = bottom - top, right - left, top, left
                tile = Tile(self.tile.reshape(-1), self.tile.shape[1], *size)
                is_two_sided = self.is_symmetric and top != left
                visitor(tile, is_two_sided, partial(self._in_float64, *size))

    def _normalised(self, vectors: Vectors, start: int, stop: int, out: np.ndarray) -> np.ndarray:
        out = out[: stop - start]
        normalise(vectors, start, stop, out)
        return out

    def _multiply(self, rows: np.ndarray, columns: np.ndarray, out: np.ndarray) -> None:
        self.product(rows, columns, out[: len(rows), : len(columns)])
        out[: len(rows), len(columns) : len(columns) + PADDING] = -np.inf

    def _in_float64(self, height: int, width: int, row: int, column: int) -> Tile:
        dim = self.queries.rows.shape[1]
        rows = self._normalised(self.queries, row, row + height, np.empty((height, dim)))
        columns = self._normalised(self.columns, column, column + width, np.empty((width, dim)))
        tile = np.empty((height, TILE + PADDING))
        self._multiply(rows, columns, tile)
        return Tile(tile.reshape(-1), tile.shape[1], height, width, row, column)


def multiply_by_numpy(rows: np.ndarray, columns: np.ndarray, out: np.ndarray) -> None:
    """Write rows @ columns.T to `out`, by NumPy's BLAS."""
    np.matmul(rows, columns.T, out=out)


def multiply_by_torch(rows: np.ndarray, columns: np.ndarray, out: np.ndarray) -> None:
    """Write rows @ columns.T to `out`, by torch's BLAS."""
    torch.mm(torch.from_numpy(rows), torch.from_numpy(columns).T, out=torch.from_numpy(out))


@cache
def fastest_product() -> Callable[[np.ndarray, np.ndarray, np.ndarray], None]:
    """Time a tile by each BLAS at hand, on one thread, and return the faster one.

    Which it is depends on the CPU. One whose error is above what is accounted for is passed over.
    """
    dim = 256
    rows, columns = np.random.default_rng(0).standard_normal((2, TILE, dim), np.float32)
    exact = rows.astype(np.float64) @ columns.T.astype(np.float64)
    norms = np.linalg.norm(rows, axis=1)[:, None] * np.linalg.norm(columns, axis=1)
    out = np.empty((TILE, TILE + PADDING), np.float32)[:, :TILE]
    seconds = {}
    _use_one_thread()
    for product in (multiply_by_numpy, multiply_by_torch):
        times = []
        for _ in range(4):
            started = time.perf_counter()
            product(rows, columns, out)
            times.append(time.perf_counter() - started)
        if np.all(np.abs(out - exact) < rounding_error(dim, np.float32) * norms):
            seconds[product] = min(times)
    return min(seconds, key=seconds.__getitem__)


def _use_one_thread() -> None:
    torch.set_num_threads(1)


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Keep the BLAS libraries from starting threads of their own."""
    before = torch.get_num_threads()
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)
