"""Embeddings on the unit sphere."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

SMALLEST_NORM = 1e-300  # keeps a zero row at zero, at cosine 0 to everything
CHUNK_ROWS = 2**13  # rows held in float64 at once


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
