"""Embeddings on the unit sphere."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from metric_learning.retrieval.inputs import checked_rows

SMALLEST_NORM = 1e-300  # keeps a zero row at zero, at cosine 0 to everything
CHUNK_ROWS = 2**13  # rows held in float64 at once
PIECE_ROWS = 2**12  # rows of features in files that are read at once


def unit_rows(
    rows: np.ndarray | Tensor,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> Tensor:
    """Divide rows (N, D) of any scale by their Euclidean norms, in float64; a zero row stays zero.

    A memory-mapped array is read in pieces. The result, a new tensor, is of the given type and on
    the given device, which must know float64.
    """
    unit = torch.empty(rows.shape, dtype=dtype, device=device)
    for start in range(0, len(rows), CHUNK_ROWS):
        part = rows[start : start + CHUNK_ROWS]
        if isinstance(part, np.ndarray):
            part = torch.from_numpy(np.array(part))  # what is mapped may not be written to
        part = part.to(device).double()
        norms = part.norm(dim=1, keepdim=True).clamp_min(SMALLEST_NORM)
        unit[start : start + CHUNK_ROWS] = part / norms
    return unit


def unit_embeddings(features: np.ndarray) -> np.ndarray:
    """Return embeddings (N, D) of length 1 as float32; ValueError where one is not finite."""
    return unit_rows(checked_rows(features, "embeddings")).numpy()


def unit_pieces(features: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield some rows after the others as `unit_embeddings`, and the number of their first one.

    So features in files are never in memory as a whole.
    """
    for start in range(0, len(features), PIECE_ROWS):
        rows = checked_rows(features[start : start + PIECE_ROWS], "embeddings", start)
        yield start, unit_rows(rows).numpy()


def unit_queries(features: np.ndarray, embedding_size: int) -> np.ndarray:
    """Return `unit_embeddings` of queries; ValueError where their D is not that of an index."""
    queries = unit_embeddings(features)
    if queries.shape[1] != embedding_size:
        raise ValueError(
            f"the index holds embeddings of {embedding_size} dimensions, the queries have "
            f"{queries.shape[1]}"
        )
    return queries
