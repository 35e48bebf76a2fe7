"""Embeddings and tiles of their similarities, as compiled loops see them (numba, CPU)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from metric_learning.retrieval.counting.cpu.jit import any_order, kernel


class Vectors(NamedTuple):
    """Embeddings, their norms, and an order to walk over them."""

    rows: np.ndarray  # (N, D) float32 or float64
    norms: np.ndarray  # (N,) float64
    order: np.ndarray  # (N,) int64, the order in which tiles take the rows


class Tile(NamedTuple):
    """Similarities of some queries (rows) with some gallery images (columns)."""

    # flat; row r starts at r * stride. Behind each row -inf up to a multiple of LANES
    values: np.ndarray
    # no value is further from the exact cosine; 0 where they are float64, which is exact
    error: float
    stride: int  # distance of rows
    height: int  # number of rows
    width: int  # number of columns
    row: int  # place of the first row in the order of the queries
    column: int  # place of the first column in the order of the gallery


@any_order
def dot(first, second):
    """Product in float64 of two rows (D,)."""
    total = 0.0
    for i in range(len(first)):
        total += np.float64(first[i]) * np.float64(second[i])
    return total


@kernel
def cosine(first, second, norm):
    """Cosine in float64 of two rows (D,), given the product of their norms; 0 if that is 0."""
    return dot(first, second) / norm if norm > 0.0 else 0.0


@kernel
def row_norms(rows, norms):
    """Write the Euclidean norms of rows (N, D) to norms (N,) float64."""
    for i in range(len(rows)):
        norms[i] = np.sqrt(dot(rows[i], rows[i]))


def prepare(embeddings: np.ndarray) -> Vectors:
    """Compute the norms of embeddings (N, D); rows of float32 or float64 are not copied."""
    dtype = np.float64 if embeddings.dtype == np.float64 else np.float32
    rows = np.ascontiguousarray(embeddings, dtype)
    norms = np.empty(len(rows))
    row_norms(rows, norms)
    return Vectors(rows, norms, np.arange(len(rows)))


@kernel
def normalise(vectors, start, stop, out):
    """Write rows start..stop, in order, divided by their norms to `out`; a zero row stays zero."""
    for i in range(stop - start):
        row = vectors.order[start + i]
        scale = 1.0 / vectors.norms[row] if vectors.norms[row] > 0.0 else 0.0
        for j in range(vectors.rows.shape[1]):
            out[i, j] = np.float64(vectors.rows[row, j]) * scale


@kernel
def pair_cosines(queries, gallery, query_rows, gallery_rows, out):
    """Write the cosines of pairs (M,) of a query and a gallery image to `out` (M,) float64."""
    for i in range(len(out)):
        q, g = query_rows[i], gallery_rows[i]
        norm = queries.norms[q] * gallery.norms[g]
        out[i] = cosine(queries.rows[q], gallery.rows[g], norm)
