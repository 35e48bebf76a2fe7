"""Short unit vectors that bound the cosines of long ones, and blocks of neighbours among them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from metric_learning.retrieval.counting.thresholds import rounding_error
from metric_learning.retrieval.unit import unit_rows

BLOCK = 256  # sketches that are neighbours
SCALE = 32766.0  # the integer that a component of 1 is rounded to
CHUNK = 2**13  # vectors that are in float64 at once
SAMPLE = 2000  # vectors by whose pairs the dimensions of sketches are chosen
SMALLEST = 8  # dimensions of a sketch; twice, four times as many and so on are tried too
# In the time of one product of one dimension: what a pair takes beside its products, and what one
# that has to be decided takes, and for each dimension of its vectors.
PAIR_COST, DECISION_COST, DIMENSION_COST = 5, 3000, 50
SLACK = 1e-7  # error of float64 where lengths cancel
POWERS, SPREAD_SAMPLE = 4, 1000  # steps to the principal axis of a part, vectors that it is of


class Sketches(NamedTuple):
    """Unit vectors of K dimensions, an even number, rounded to integers of 1 / SCALE."""

    codes: np.ndarray  # (N, K) int16
    error: float  # the greatest distance of a sketch from what it was rounded to


class Blocks(NamedTuple):
    """Sketches in an order in which each BLOCK of them are neighbours."""

    order: np.ndarray  # (N,) int64
    centres: np.ndarray  # (blocks, K) float32
    # (blocks,) float32: one whose product with the centre is below it is near none of the block
    limits: np.ndarray


def choose_basis(ours: np.ndarray, theirs: np.ndarray, lowest: float) -> np.ndarray | None:
    """Choose the axes (D, K - 1) float64 of sketches, by what sampled pairs would cost.

    None: no sketch of fewer than D dimensions would be worth it.
    """
    rng = np.random.default_rng(0)
    sides = []
    for vectors in (ours, theirs):
        chosen = rng.choice(len(vectors), min(SAMPLE, len(vectors)), replace=False)
        sides.append(_unit(vectors[np.sort(chosen)]))
    dim = ours.shape[1]
    _, axes = np.linalg.eigh(np.cov(np.concatenate(sides).T).reshape(dim, dim))
    axes = axes[:, ::-1]  # from most variance to least
    own, other = (side @ axes for side in sides)

    best, costs = None, float(dim + PAIR_COST)
    size = SMALLEST
    while size < dim:
        products = _sketched(own, size) @ _sketched(other, size).T
        # Of a vector with itself and its copies there are few among all pairs, but not among these.
        share = float(((products >= lowest) & (own @ other.T < lowest)).mean())
        cost = size + PAIR_COST + share * (DECISION_COST + DIMENSION_COST * dim)
        if cost < costs:
            best, costs = axes[:, : size - 1], cost
        size *= 2
    return best


def make_sketches(vectors: np.ndarray, basis: np.ndarray | None) -> Sketches:
    """Sketch vectors (N, D) of any scale; a zero row stays zero."""
    size = vectors.shape[1] if basis is None else basis.shape[1] + 1
    codes = np.zeros((len(vectors), -(-size // 2) * 2), np.int16)
    greatest = 0.0

    for start in range(0, len(vectors), CHUNK):
        exact = _unit(vectors[start : start + CHUNK])
        if basis is not None:
            left = np.einsum("nd,nd->n", exact, exact)
            exact = np.append(exact @ basis, np.zeros((len(exact), 1)), 1)
            left -= np.einsum("nd,nd->n", exact, exact)
            exact[:, -1] = np.sqrt(np.maximum(left, 0))
        exact *= SCALE
        rounded = np.rint(exact)
        codes[start : start + CHUNK, :size] = rounded
        greatest = max(greatest, float(np.linalg.norm(exact - rounded, axis=1).max()))
    return Sketches(codes, greatest / SCALE + SLACK)


def arrange(sketches: Sketches, lowest: float, error: float) -> Blocks:
    """Sort sketches into blocks; `error` is of both sketches of a pair of a cosine of `lowest`."""
    codes = sketches.codes
    order = np.arange(len(codes))
    waiting = [(0, len(order))]
    while waiting:
        start, stop = waiting.pop()
        half = -(-(stop - start) // BLOCK) // 2 * BLOCK
        if half:
            members = order[start:stop]
            axis = _principal_axis(_points(codes, members[:: -(-len(members) // SPREAD_SAMPLE)]))
            places = np.concatenate([points @ axis for points in _pieces(codes, members)])
            order[start:stop] = members[np.argpartition(places, half)]
            waiting += (start, start + half), (start + half, stop)

    starts = range(0, len(order), BLOCK)
    centres = np.empty((len(starts), codes.shape[1]), np.float32)
    limits = np.empty(len(starts))
    distance = max(0.0, 2 - 2 * lowest) ** 0.5 + error
    for block, start in enumerate(starts):
        points = _points(codes, order[start : start + BLOCK]).astype(np.float64)
        centres[block] = points.mean(0)
        centre = centres[block].astype(np.float64)
        reach = np.linalg.norm(points - centre, axis=1).max() + distance
        # |p - c|^2 = |p|^2 + |c|^2 - 2 p c > reach^2, where |p| is 1 but for its error.
        limits[block] = (1 - 2 * error + centre @ centre - reach**2) / 2
    limits -= 2 * rounding_error(codes.shape[1], np.float32)
    if lowest <= 0:  # a zero row, which is not at a length of 1, has a cosine of 0 to all
        limits[:] = -np.inf
    return Blocks(order, centres, limits.astype(np.float32))


def _unit(vectors: np.ndarray) -> np.ndarray:
    return unit_rows(vectors, torch.float64).numpy()


def _sketched(components: np.ndarray, size: int) -> np.ndarray:
    """Return sketches of vectors, given by all of their principal components."""
    rest = np.linalg.norm(components[:, size - 1 :], axis=1, keepdims=True)
    return np.append(components[:, : size - 1], rest, 1)


def _points(codes: np.ndarray, members: np.ndarray) -> np.ndarray:
    points: np.ndarray = codes[members].astype(np.float32) / np.float32(SCALE)
    return points


def _pieces(codes: np.ndarray, members: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(members), CHUNK):
        yield _points(codes, members[start : start + CHUNK])


def _principal_axis(points: np.ndarray) -> np.ndarray:
    """Return about the direction of the greatest variance of points (N, K)."""
    centred = points - points.mean(0)
    axis = np.zeros(points.shape[1], np.float32)
    axis[centred.var(0).argmax()] = 1
    for _ in range(POWERS):
        turned = centred.T @ (centred @ axis)
        axis = turned / max(float(np.linalg.norm(turned)), 1e-30)
    return axis
