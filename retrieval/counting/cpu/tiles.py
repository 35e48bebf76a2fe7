"""Similarities of all pairs on the CPU, tile by tile, by as many threads as there are cores.

No matrix of all pairs exists: a thread multiplies two blocks of normalised embeddings, hands the
tile to a visitor, again and more precisely if it asks for that, and forgets it. In self-retrieval
the matrix is symmetric, and only the tiles on and above its diagonal are computed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, SimpleQueue
from threading import Event, RLock
from typing import Any, NamedTuple

import numpy as np
import torch

from metric_learning.retrieval.counting.cpu.products import (
    Product,
    cosine_error,
    one_thread_each,
)
from metric_learning.retrieval.counting.cpu.vectors import Tile, Vectors
from metric_learning.retrieval.counting.full_precision import full_precision
from metric_learning.retrieval.counting.thresholds import Share

TILE = 768  # rows and columns of a tile: large enough for a fast product
LEAST_ROWS = 64  # of a block of queries, where few queries are shared among many threads
PADDING = 16  # columns between rows, against cache conflicts when columns are read
BLOCK = 3 * TILE  # rows that are normalised once for all their tiles
WIDE_ROWS = 64  # of a tile of queries with many positives
WIDE_BLOCK = 12 * WIDE_ROWS
WIDE_COLUMNS = 768, 32768  # fewest and most of it, and numbers that they have, where in between
WIDE_NUMBERS = 2**23
ONE_JOB = RLock()  # the number of threads of the BLAS libraries is one for the whole process

# Called with each tile, as an iterator that computes it by one product after the other, from fast
# to exact, and whether its columns are to be seen as queries too (the mirrored tile is not given).
Visitor = Callable[[Iterator[Tile], bool], None]
# From a tile's first row and the one behind its last to the columns, likewise, that it may lack.
LeftOut = Callable[[int, int], tuple[int, int]]
# Factors of columns and their greatest error, by the first column and the one behind the last.
Kept = dict[tuple[int, int], tuple[Any, float]]


class Shape(NamedTuple):
    """Rows and columns of a tile, and the most rows that are normalised once for several tiles."""

    rows: int
    columns: int
    block: int


def square() -> Shape:
    """Return the shape in which a product is fastest."""
    return Shape(TILE, TILE, BLOCK)


def wide(dim: int) -> Shape:
    """Return a shape of long rows, for each of which much is fetched before it is looked at."""
    columns = min(max(WIDE_NUMBERS // dim, WIDE_COLUMNS[0]), WIDE_COLUMNS[1])
    return Shape(WIDE_ROWS, columns, WIDE_BLOCK)


def num_cores() -> int:
    """Number of threads to use: as torch was told, by OMP_NUM_THREADS or torch.set_num_threads."""
    return max(1, min(torch.get_num_threads(), os.cpu_count() or 1))


def for_each_tile(
    queries: Vectors,
    gallery: Vectors | None,
    query_range: tuple[int, int],
    make_visitor: Callable[[], Visitor],
    share: Share,
    choose_products: Callable[[], Sequence[Product]],
    shape: Shape | None = None,
    left_out: LeftOut = lambda top, bottom: (0, 0),
    kept: Kept | None = None,
) -> None:
    """Let visitors, one per thread, see the similarities of queries (Q, D) with a gallery (G, D).

    Without a gallery the queries are it and all are asked: tiles below the diagonal are left out
    and those above it count for both sides. The range is the first query and the one behind the
    last; the products, which may be timed, are from fast to exact; tiles are square by default.
    Kept are the columns' factors of the first product, for the next call with the same columns.
    """
    shape = shape or square()
    columns = queries if gallery is None else gallery
    cores = max(1, min(num_cores(), len(columns.rows) // (2 * TILE)))
    # All processes have to cut the queries alike, however many threads each of them has.
    fewest = max(1, min(share.threads or cores, len(columns.rows) // (2 * TILE)))
    blocks = cut(query_range, share.size * fewest, shape, is_symmetric=gallery is None)
    shape = shape._replace(block=blocks[0][1] - blocks[0][0] if blocks else shape.block)

    tasks: SimpleQueue[tuple[int, int]] = SimpleQueue()
    for block in blocks[share.rank :: share.size]:  # those with most tiles first
        tasks.put(block)
    has_stopped = Event()

    def work() -> None:
        room = shape, products, left_out, kept
        workspace, visitor = Workspace(queries, columns, gallery is None, *room), make_visitor()
        while not has_stopped.is_set():
            try:
                block = tasks.get_nowait()
            except Empty:
                return
            workspace.visit_block(*block, visitor, has_stopped)

    with ONE_JOB, one_thread_each(), full_precision():
        products = choose_products()
        with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            try:
                for future in [pool.submit(work) for _ in range(cores)]:
                    future.result()
            except BaseException:  # an error of one thread, or Ctrl-C
                has_stopped.set()
                raise


def cut(
    query_range: tuple[int, int], num_workers: int, shape: Shape, is_symmetric: bool
) -> list[tuple[int, int]]:
    """Cut queries into blocks, each the first and the one behind the last, for several workers."""
    start, stop = query_range
    unit = shape.rows if is_symmetric else LEAST_ROWS
    height = -(-(stop - start) // (num_workers * (4 if is_symmetric else 1)))
    height = min(shape.block, -(-height // unit) * unit)
    return [(row, min(row + height, stop)) for row in range(start, stop, height)]


class Workspace:
    """The memory in which one thread computes tiles."""

    def __init__(
        self,
        queries: Vectors,
        columns: Vectors,
        is_symmetric: bool,
        shape: Shape,
        products: Sequence[Product],
        left_out: LeftOut,
        kept: Kept | None,
    ) -> None:
        self.num_columns, self.is_symmetric = len(columns.rows), is_symmetric
        self.shape = shape
        self.levels = [
            Level(product, queries, columns, shape, left_out, None if i else kept)
            for i, product in enumerate(products)
        ]

    def visit_block(self, start: int, stop: int, visitor: Visitor, has_stopped: Event) -> None:
        """Visit the tiles of queries start..stop, column after column."""
        rows, columns, _ = self.shape
        for left in range(start if self.is_symmetric else 0, self.num_columns, columns):
            if has_stopped.is_set():
                return
            right = min(left + columns, self.num_columns)
            for number, top in enumerate(range(start, stop, rows)):
                if self.is_symmetric and top > left:
                    break
                versions = self._versions(number, top, min(top + rows, stop), left, right)
                visitor(versions, self.is_symmetric and top != left)

    def _versions(self, number: int, *place: int) -> Iterator[Tile]:
        """Compute a tile by one product after the other, as long as a better one is asked for."""
        for level in self.levels:
            if level.tiles_to_skip > 0:
                level.tiles_to_skip -= 1
                continue
            yield level.tile(number, *place)
            level.tiles_to_skip = level.product.pause


class Level:
    """The tiles of one product.

    It keeps the factors of a block of queries and of the columns of the last tile, which the next
    tiles need again; in float64, which few need, those of the last tile alone.
    """

    def __init__(
        self,
        product: Product,
        queries: Vectors,
        columns: Vectors,
        shape: Shape,
        left_out: LeftOut,
        kept: Kept | None,
    ) -> None:
        self.product, self.shape, self.left_out = product, shape, left_out
        num_kept = 1 if product.dtype == np.float64 else -(-shape.block // shape.rows)
        self.rows = [Factors(product, queries, shape.rows) for _ in range(num_kept)]
        self.columns = Factors(product, columns, shape.columns, kept)
        self.values: np.ndarray | None = None
        self.tiles_to_skip = 0

    def tile(self, number: int, top: int, bottom: int, left: int, right: int) -> Tile:
        """Compute rows top..bottom, the number-th of their block, times columns left..right."""
        height, width = bottom - top, right - left
        if self.values is None:
            grain = self.product.grain
            most = [-(-size // grain) * grain for size in (self.shape.rows, self.shape.columns)]
            self.values = np.empty((most[0], most[1] + PADDING), self.product.dtype)
        rows, row_error = self.rows[number % len(self.rows)].get(top, bottom)
        columns, column_error = self.columns.get(left, right)
        for part in self._parts(top, bottom, left, right):
            self.product.multiply(rows, columns, height, part, self.values)
        self.values[:height, width : width + PADDING] = -np.inf
        error = cosine_error(self.product, self.columns.dim, row_error, column_error)
        return Tile(self.values.reshape(-1), error, self.values.shape[1], height, width, top, left)

    def _parts(self, top: int, bottom: int, left: int, right: int) -> list[tuple[int, int]]:
        """Return the ranges of a tile's columns that are not left out, from its first column on."""
        width, grain = right - left, self.product.grain
        first, last = (min(max(place - left, 0), width) for place in self.left_out(top, bottom))
        first = -(-first // grain) * grain
        if last < width:
            last = last // grain * grain
        if first >= last:
            return [(0, width)]
        return [(start, stop) for start, stop in ((0, first), (last, width)) if start < stop]


class Factors:
    """Normalised vectors in the form that a product takes, made when they are asked for."""

    def __init__(
        self, product: Product, vectors: Vectors, most: int, kept: Kept | None = None
    ) -> None:
        self.product, self.vectors, self.most, self.kept = product, vectors, most, kept
        self.dim = vectors.rows.shape[1]
        self.place: tuple[int, int] | None = None
        self.room: Any = None
        self.error = 0.0

    def get(self, start: int, stop: int) -> tuple[Any, float]:
        """Return vectors start..stop, in order, and the greatest error of one of them."""
        if self.kept is not None:
            if (start, stop) not in self.kept:  # two threads may both fill it, alike
                room = self.product.room(stop - start, self.dim)
                self.kept[start, stop] = room, self.product.fill(self.vectors, start, stop, room)
            return self.kept[start, stop]

        if self.room is None:
            self.room = self.product.room(self.most, self.dim)
        if self.place != (start, stop):
            self.error = self.product.fill(self.vectors, start, stop, self.room)
            self.place = start, stop
        return self.room, self.error
