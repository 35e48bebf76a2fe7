"""Exact nearest neighbours by cosine similarity."""

from __future__ import annotations

import numpy as np
import torch

from metric_learning.retrieval.unit import unit_rows

CHUNK_ELEMENTS = 2**25  # float32 similarities held at once: 128 MiB


def nearest(
    queries: np.ndarray,
    gallery: np.ndarray,
    k: int,
    own_rows: np.ndarray | None = None,
    device: str | torch.device = "cpu",
    left_out: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Find each query's k most similar gallery images.

    Args:
        queries: (Q, D) float embeddings, any scale.
        gallery: (G, D) float embeddings.
        k: neighbours per query.
        own_rows: (Q,) int64, the gallery row that is the query itself and is left out, -1 if it is
            not there; None if no query is.
        device: where the similarities are computed.
        left_out: rows of queries, ascending, and of gallery images (M,) int64 that these are not to
            find, which have a cosine of minus infinity where a query has fewer than k others.

    Returns:
        rows (Q, k) int64 in the gallery, most similar first, and cosines (Q, k) float32.

    Raises:
        ValueError: k is below 1 or above the number of images that can be found.
    """
    findable = len(gallery) - (own_rows is not None)
    if not 1 <= k <= findable:
        raise ValueError(f"expected 1 to {findable} neighbours in this gallery, found k = {k}")

    searched, asking = (unit_rows(rows, device=device) for rows in (gallery, queries))
    chunk_size = max(1, CHUNK_ELEMENTS // len(searched))
    rows, cosines = [], []
    for start in range(0, len(asking), chunk_size):
        similarities = asking[start : start + chunk_size] @ searched.T
        if own_rows is not None:
            own = torch.as_tensor(own_rows[start : start + chunk_size]).to(device)
            inside = (own >= 0).nonzero()[:, 0]
            similarities[inside, own[inside]] = -torch.inf
        if left_out is not None:
            first, last = np.searchsorted(left_out[0], [start, start + chunk_size])
            asked, hidden = (torch.as_tensor(part[first:last]).to(device) for part in left_out)
            similarities[asked - start, hidden] = -torch.inf
        best = similarities.topk(k, dim=1)
        rows.append(best.indices.cpu().numpy())
        cosines.append(best.values.cpu().numpy())
    return np.concatenate(rows), np.concatenate(cosines)
