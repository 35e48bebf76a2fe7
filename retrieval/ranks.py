"""Exact ranks of every query's positives, without an N x N matrix."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

TIE_TOLERANCE = 1e-9  # similarities this close are equal, and a tie counts against the query
SMALLEST_NORM = 1e-300  # keeps a zero embedding at zero, at cosine 0 to everything
CHUNK_ELEMENTS = 2**24  # float64 similarities held at once: 128 MiB


@dataclass(frozen=True)
class Ranks:
    """Ranks of all positives of all queries that have one.

    Attributes:
        ranks: (M,) int64, one-based, ascending within a query; the positives of all queries.
        offsets: (Q + 1,) int64; query i's ranks are `ranks[offsets[i]:offsets[i + 1]]`.
        queries: (Q,) int64, the row of each query among all query embeddings.
        queries_without_positive: number of queries left out.
    """

    ranks: np.ndarray
    offsets: np.ndarray
    queries: np.ndarray
    queries_without_positive: int

    @property
    def first(self) -> np.ndarray:
        """Rank of each query's best positive, (Q,) int64."""
        return self.ranks[self.offsets[:-1]]


def positive_ranks(
    queries: Tensor,
    query_labels: Tensor,
    gallery: Tensor,
    gallery_labels: Tensor,
    self_retrieval: bool,
) -> Ranks:
    """Rank each query's positives by cosine similarity in the gallery.

    The rank of a positive is 1 + the negatives at least as similar (within 1e-9, in float64) + the
    positives that come before it. A query is excluded from its own gallery by its row, so that
    duplicates of it are ordinary gallery images.

    Args:
        queries: (Q, D) float embeddings, normalised here in float64.
        query_labels: (Q,) int64.
        gallery: (G, D) float embeddings on the same device.
        gallery_labels: (G,) int64.
        self_retrieval: queries and gallery are the same rows.

    Returns:
        The ranks. Cost: O(Q G (D + log positives)) time; the embeddings in float64 and up to a GiB
        for the similarities of a chunk and what is counted on them.
    """
    queries = F.normalize(queries.double(), dim=1, eps=SMALLEST_NORM)
    gallery = queries if self_retrieval else F.normalize(gallery.double(), dim=1, eps=SMALLEST_NORM)
    chunk_size = max(1, CHUNK_ELEMENTS // len(gallery))
    ranks, counts = [], []
    for start in range(0, len(queries), chunk_size):
        rows = torch.arange(start, min(start + chunk_size, len(queries)), device=queries.device)
        similarities = queries[rows] @ gallery.T
        is_positive = query_labels[rows, None] == gallery_labels[None, :]
        is_ranked = torch.ones_like(is_positive)
        if self_retrieval:
            is_ranked[rows - start, rows] = False
        chunk_ranks, chunk_counts = _chunk_ranks(similarities, is_positive, is_ranked)
        ranks.append(chunk_ranks.cpu())
        counts.append(chunk_counts.cpu())
    all_counts = torch.cat(counts).numpy()
    with_positive = np.flatnonzero(all_counts)
    return Ranks(
        ranks=torch.cat(ranks).numpy(),
        offsets=np.concatenate([[0], np.cumsum(all_counts[with_positive])]),
        queries=with_positive,
        queries_without_positive=len(all_counts) - len(with_positive),
    )


def _chunk_ranks(
    similarities: Tensor, is_positive: Tensor, is_ranked: Tensor
) -> tuple[Tensor, Tensor]:
    """Ranks of the positives of a chunk of queries.

    Args:
        similarities: (B, G) float64.
        is_positive: (B, G) bool, same label.
        is_ranked: (B, G) bool, False where the gallery image is the query itself.

    Returns:
        ranks (M,) int64 in query order, ascending within a query, and positives per query (B,).
    """
    is_negative = ~is_positive & is_ranked
    is_positive = is_positive & is_ranked
    counts = is_positive.sum(1)
    width = int(counts.max())
    if width == 0:
        return torch.empty(0, dtype=torch.int64, device=counts.device), counts
    hidden = similarities.masked_fill(~is_positive, -torch.inf)
    best_first = hidden.topk(width, dim=1).values  # BxR, descending, -inf where there is none
    thresholds = (best_first - TIE_TOLERANCE).flip(1).contiguous()  # ascending
    num_beaten = torch.searchsorted(thresholds, similarities, right=True)  # 0..R
    num_beaten = torch.where(is_negative, num_beaten, 0)
    histogram = torch.zeros(len(counts), width + 1, dtype=torch.int64, device=counts.device)
    histogram.scatter_add_(1, num_beaten, is_negative.long())
    # A negative that beats n of the ascending thresholds stands before the n worst positives.
    negatives_before = histogram.flip(1).cumsum(1)[:, :width]
    ranks = negatives_before + torch.arange(1, width + 1, device=counts.device)
    exists = torch.arange(width, device=counts.device) < counts[:, None]
    return ranks[exists], counts
