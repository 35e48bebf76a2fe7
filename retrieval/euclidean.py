"""Euclidean distances of embeddings as they are, for ranks by them instead of cosines."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

CHUNK_ELEMENTS = 2**24  # float64 similarities held at once: 128 MiB
GALLERY_ROWS = 2**13  # rows of the gallery held in float64 at once


def euclidean_similarities(
    queries: np.ndarray, gallery: np.ndarray | None = None, device: str | torch.device = "cpu"
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield similarities that fall with the Euclidean distance, queries chunk by chunk.

    s = -|q - g|^2 / (2 v), v the mean squared length of the gallery's embeddings. Of embeddings of
    one length these are cosines less 1: the same ranks, and the same ties.

    Args:
        queries: (Q, D) float32 or float64 embeddings.
        gallery: (G, D) float, or None where the queries are the gallery.
        device: where the distances are computed; only the CPU and CUDA have float64.

    Yields:
        The rows of B queries and their similarities (B, G) float64, at most 0. They are products in
        float64, whose error is some D times 1e-16 of the squared lengths over v. Cost: O(Q G D)
        time; the memory does not grow with the number of images, which may be memory-mapped.
    """
    searched = queries if gallery is None else gallery
    parts = [slice(start, start + GALLERY_ROWS) for start in range(0, len(searched), GALLERY_ROWS)]
    total = sum(float(_moved(searched[part], device).square().sum()) for part in parts)
    scale = total / len(searched) or 1.0  # all zero: all alike

    chunk_size = max(1, CHUNK_ELEMENTS // len(searched))
    for start in range(0, len(queries), chunk_size):
        rows = slice(start, min(start + chunk_size, len(queries)))
        asking = _moved(queries[rows], device)
        lengths = asking.square().sum(1, keepdim=True)
        similarities = np.empty((len(asking), len(searched)))
        for part in parts:
            columns = _moved(searched[part], device)
            squares = (asking @ columns.T).mul_(-2).add_(lengths).add_(columns.square().sum(1))
            similarities[:, part] = squares.clamp_(min=0).div_(-2 * scale).cpu().numpy()
        yield rows, similarities


def _moved(rows: np.ndarray, device: str | torch.device) -> Tensor:
    """Return rows in float64 on a device; what is mapped is copied."""
    return torch.from_numpy(np.array(rows, np.float64)).to(device)
