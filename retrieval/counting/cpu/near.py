"""Pairs of vectors above a cosine, all of them, for a fraction of the product of all with all.

A vector is sketched by its first K - 1 principal components and the length of what these leave: a
unit vector of K dimensions. By Cauchy-Schwarz the product of two sketches is at least the cosine of
their vectors, so a pair whose sketches stay below the threshold is not near.

Sketches are sorted into blocks of neighbours. By the triangle inequality one is near none of a
block that is further from its centre than the block's radius and the distance of a near pair; with
the others it is multiplied, both rounded to int16. What is left is decided in float64. All errors
are bounded, so that no near pair is lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Event
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from metric_learning.retrieval.counting.cpu.instructions import (
    PAIR_PRODUCT,
    ROWS_AT_ONCE,
    reach_panels,
)
from metric_learning.retrieval.counting.cpu.jit import kernel
from metric_learning.retrieval.counting.cpu.products import one_thread_each
from metric_learning.retrieval.counting.cpu.sketches import (
    BLOCK,
    SCALE,
    Blocks,
    Sketches,
    arrange,
    choose_basis,
    make_sketches,
)
from metric_learning.retrieval.counting.cpu.tiles import ONE_JOB, num_cores
from metric_learning.retrieval.counting.cpu.vectors import Vectors, cosine, prepare

LANES, PANELS = (PAIR_PRODUCT.lanes, PAIR_PRODUCT.panels) if PAIR_PRODUCT else (16, 4)
ROWS = 512  # sketches that are compared with the blocks at once
BLOCKS = 1024  # blocks whose centres are multiplied with these at once
ROOM = 2 * ROWS * BLOCK  # pairs that a thread writes down before it hands them over

Found = tuple[np.ndarray, np.ndarray, np.ndarray]  # numbers of rows and others, their cosines


class Search(NamedTuple):
    """What is looked for, as the compiled loops take it; others are in blocks, rows are not."""

    ours: Vectors
    theirs: Vectors
    panels: np.ndarray  # (panels, K / 2, LANES) int32, pairs of int16 of others, in the order
    order: np.ndarray  # (M,) int64, numbers of others
    limits: np.ndarray  # (blocks,) float32, see Blocks
    bound: int  # least product of the integers of two near sketches
    least: np.float32  # cosine


class Room(NamedTuple):
    """Where a thread writes pairs."""

    rows: np.ndarray  # (ROOM,) int64
    others: np.ndarray  # (ROOM,) int64
    cosines: np.ndarray  # (ROOM,) float32


def can_search() -> bool:
    """Whether this CPU has the instructions."""
    return PAIR_PRODUCT is not None


def search_pairs(
    ours: np.ndarray, theirs: np.ndarray | None, threshold: float, most: int
) -> Iterator[Found]:
    """Yield all pairs whose cosine, rounded to float32, reaches a threshold; of rows some at once.

    Args:
        ours: (N, D) float32, finite.
        theirs: (M, D) float32, or None for pairs among ours, the smaller number first.
        threshold: from -1 to 1.
        most: pairs, after which a thread gives up the search of some rows: who asks has too many.
    """
    if not len(ours) or (theirs is not None and not len(theirs)):
        return
    least = np.float32(threshold)
    lowest = float(np.nextafter(least, np.float32(-2)))  # what is rounded to the least is above it
    columns = ours if theirs is None else theirs
    basis = choose_basis(ours, columns, lowest)
    own = make_sketches(ours, basis)
    others = own if theirs is None else make_sketches(theirs, basis)
    error = own.error + (1 + own.error) * others.error  # see `cosine_error`
    blocks = arrange(others, lowest, own.error + others.error)
    vectors = prepare(ours), prepare(columns)
    bound = int(np.floor((lowest - error) * SCALE**2))
    panels = _panels(others.codes, blocks.order)
    search = Search(*vectors, panels, blocks.order, blocks.limits, bound, least)

    order = blocks.order if theirs is None else np.arange(len(ours))
    has_stopped = Event()
    work = partial(_search_rows, own, order, theirs is None, blocks, search, most, has_stopped)
    cores = num_cores()  # as many as are allowed, before BLAS gets one
    with ONE_JOB, one_thread_each(), ThreadPoolExecutor(cores) as pool:
        starts = range(0, len(order), ROWS)
        try:
            found = pool.map(work, starts)
            bar = tqdm(found, "comparing", len(starts), unit="block", disable=None, leave=False)
            yield from bar
        finally:
            has_stopped.set()
            pool.shutdown(cancel_futures=True)


def _search_rows(
    own: Sketches,
    order: np.ndarray,
    is_symmetric: bool,
    blocks: Blocks,
    search: Search,
    most: int,
    has_stopped: Event,
    start: int,
) -> Found:
    """Find the pairs of some rows, with blocks from their own on where it is symmetric."""
    numbers = order[start : start + ROWS]
    codes = own.codes[numbers]
    points = codes.astype(np.float32) / np.float32(SCALE)
    room = Room(np.empty(ROOM, np.int64), np.empty(ROOM, np.int64), np.empty(ROOM, np.float32))
    place = start if is_symmetric else -1
    found = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))]
    count = 0

    for first in range(start // BLOCK if is_symmetric else 0, len(blocks.centres), BLOCKS):
        products = blocks.centres[first : first + BLOCKS] @ points.T
        block = 0
        while block < len(products) and count <= most and not has_stopped.is_set():
            pairs = codes.view(np.int32)
            block, size = _search_blocks(
                products, first, block, pairs, numbers, place, search, room
            )
            rows, others, cosines = (part[:size].copy() for part in room)
            found.append((rows, others, cosines))
            count += size
    rows, others, cosines = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return rows, others, cosines


def _panels(codes: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Return codes (N, K) as `reach_panels` takes them, with zeros behind the last."""
    grain = LANES * PANELS
    panels = np.zeros((-(-len(order) // grain) * PANELS, codes.shape[1] // 2, LANES), np.int32)
    _pack(codes.view(np.int32), order, len(order), panels)
    return panels


@kernel
def _pack(pairs, numbers, count, panels):
    """Write the pairs (N, K / 2) int32 of `count` numbered rows to panels."""
    for i in range(count):
        for pair in range(pairs.shape[1]):
            panels[i // LANES, pair, i % LANES] = pairs[numbers[i], pair]


@kernel
def _collect(products, limit, near):
    """Write the places of the products that reach a limit to `near`; return how many."""
    count = 0
    for i in range(len(products)):
        count += products[i] >= limit
    if count == 0:  # mostly, and this loop is vectorised
        return 0
    count = 0
    for i in range(len(products)):
        near[count] = i
        count += products[i] >= limit
    return count


@kernel
def _search_blocks(products, first, block, pairs, numbers, place, search, room):
    """Find near pairs of rows with blocks, by the products (blocks, rows) with their centres.

    `first` is the number of the products' first block, `block` the one to begin with, `place` the
    place of the first row in the order, or -1: then others before a row count too.

    Returns:
        The block to go on with when the room has been emptied, and how many pairs are in it.
    """
    near, own = (
        np.empty(len(pairs) + 1, np.int64),
        np.empty((-(-len(pairs) // LANES), pairs.shape[1], LANES), np.int32),
    )
    reached, panel = np.empty(ROWS_AT_ONCE * PANELS, np.uint16), pairs.shape[1] * LANES
    own_pairs, their_pairs = own.reshape(-1), search.panels.reshape(-1)
    found = 0

    while block < len(products) and found + len(pairs) * BLOCK <= len(room.rows):
        count = _collect(products[block], search.limits[first + block], near)
        _pack(pairs, near, count, own)
        left = (first + block) * BLOCK
        right = min(left + BLOCK, len(search.order))

        for top in range(0, count, ROWS_AT_ONCE):
            some = own_pairs[top // LANES * panel + top % LANES :]
            rows = near[top : min(top + ROWS_AT_ONCE, count)]
            for column in range(left, right, LANES * PANELS):
                theirs = their_pairs[column // LANES * panel :]
                if reach_panels(some, theirs, panel, pairs.shape[1], search.bound, reached):
                    found = _decide(reached, rows, numbers, place, column, search, room, found)
        block += 1
    return block, found


@kernel
def _decide(reached, rows, numbers, place, column, search, room, found):
    """Write those of the pairs that are reached, and are near, to the room; return its new size."""
    ours, theirs = search.ours, search.theirs

    for i in range(len(rows)):
        row = numbers[rows[i]]
        for panel in range(PANELS):
            bits, other_place = reached[i * PANELS + panel], column + panel * LANES
            while bits:
                is_new = place < 0 or place + rows[i] < other_place
                if bits & 1 and is_new and other_place < len(search.order):
                    other = search.order[other_place]
                    norm = ours.norms[row] * theirs.norms[other]
                    similarity = np.float32(cosine(ours.rows[row], theirs.rows[other], norm))
                    if similarity >= search.least:
                        room.rows[found] = row if place < 0 else min(row, other)
                        room.others[found] = other if place < 0 else max(row, other)
                        room.cosines[found] = similarity
                        found += 1
                bits, other_place = bits >> 1, other_place + 1
    return found
