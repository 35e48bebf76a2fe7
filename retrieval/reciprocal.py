"""k-reciprocal re-ranking with sparse matrices.

Re-ranking person re-identification with k-reciprocal encoding (Zhong et al. 2017), section 3,
https://arxiv.org/abs/1701.08398. d is the squared Euclidean distance of unit embeddings, divided by
the largest of its row. N(p, k): p and its k nearest images. R(p, k): those g of N(p, k) with p in
N(g, k). R*(p): R(p, k1), joined with R(q, k1/2) for every q of R(p, k1) for which R(p, k1) holds
two thirds of R(q, k1/2) or more (the paper; published code, the authors' too, has more than two
thirds, which is `strict`). V_p: exp(-d(p, g)) for g in R*(p), else 0, scaled to sum 1, then
averaged over p and its k2 - 1 nearest images. Result: (1 - lambda) Jaccard(V_p, V_g)
+ lambda d(p, g), with Jaccard distance 1 - sum min / sum max. What the paper leaves open (p in its
own neighbourhood, the scales of d and V, all queries and gallery images as possible neighbours) is
as in its authors' code.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from metric_learning.retrieval.unit import unit_rows

SMALLEST_SCALE = 1e-12  # a collapsed model has no distances but rounding, which stays small
CHUNK_ELEMENTS = 2**24  # float64 distances held at once: 128 MiB


def k_reciprocal_similarities(
    queries: np.ndarray,
    gallery: np.ndarray | None = None,
    k1: int = 20,
    k2: int = 6,
    lambda_: float = 0.3,
    device: str | torch.device = "cpu",
    strict: bool = False,
    own_rows: np.ndarray | None = None,
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield minus the distances of k-reciprocal encoding, queries chunk by chunk.

    Args:
        queries: (Q, D) float embeddings, any scale.
        gallery: (G, D) float embeddings; None where the queries are the gallery.
        k1: size of the neighbourhood, below the number of images.
        k2: images whose encodings are averaged, 1 (none but its own) to k1.
        lambda_: weight of the original distance, 0 to 1.
        device: where distances are computed; only the CPU and CUDA have float64.
        strict: join sets that share more than two thirds, as published code does, not those that
            share two thirds exactly.
        own_rows: (Q,) int64, the gallery row that is the query itself, -1 if it is not there; such
            an image is one image, not two.

    Yields:
        The rows of B queries and similarities (B, G) float64: minus the distances, -1 to 0. The
        column of a query that is in the gallery is there too. Cost for N different images: two
        times O(N^2 D), O(N k1^2) memory beside a chunk.

    Raises:
        ValueError: a parameter is out of range.
    """
    everything, asked, first = _different_images(queries, gallery, own_rows)
    check_parameters(k1, k2, lambda_, len(everything))
    unit = unit_rows(everything, torch.float64, device)
    neighbours, farthest = _neighbours(unit, k1)
    encodings = _encode(unit, neighbours, farthest, k2, strict)

    holders = encodings[first:].T.tocsr()
    chunk_size = max(1, CHUNK_ELEMENTS // len(unit))
    for start in range(0, len(queries), chunk_size):
        rows = slice(start, min(start + chunk_size, len(queries)))
        own = asked[rows]
        similarities = _distances(unit[own], unit[first:]).cpu().numpy()
        similarities *= -lambda_ / farthest[own, None]
        overlaps = _overlaps(encodings[own], holders)
        similarities -= (1 - lambda_) * (1 - overlaps / (2 - overlaps))  # sum max = 2 - sum min
        yield rows, similarities


def _different_images(
    queries: np.ndarray, gallery: np.ndarray | None, own_rows: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, int]:
    """Return every image once (N, D), the row of each query (Q,), and the first of the gallery."""
    if gallery is None:
        return queries, np.arange(len(queries)), 0
    own_rows = np.full(len(queries), -1) if own_rows is None else own_rows
    is_alone = own_rows < 0
    first = int(is_alone.sum())
    asked = np.where(is_alone, np.cumsum(is_alone) - 1, first + own_rows)
    return np.concatenate([queries[is_alone], gallery]), asked, first


def check_parameters(k1: int, k2: int, lambda_: float, num_images: int) -> None:
    """Raise ValueError where a parameter is out of the range that so many images allow."""
    if not 1 <= k1 < num_images:
        raise ValueError(
            f"expected k1 to be 1 to {num_images - 1} (of {num_images} images), found {k1}: choose "
            "a smaller k1"
        )
    if not 1 <= k2 <= k1:
        raise ValueError(f"expected k2 to be 1 to k1 = {k1}, found {k2}")
    if not 0 <= lambda_ <= 1:
        raise ValueError(f"expected lambda to be 0 to 1, found {lambda_}")


def _distances(rows: Tensor, columns: Tensor) -> Tensor:
    """Squared Euclidean distances of unit vectors."""
    return (2 - 2 * (rows @ columns.T)).clamp_(min=0)


def _neighbours(unit: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Each image followed by its k nearest others, (N, k + 1), and its largest distance (N,)."""
    neighbours, farthest = [], []
    chunk_size = max(1, CHUNK_ELEMENTS // len(unit))
    for start in range(0, len(unit), chunk_size):
        distances = _distances(unit[start : start + chunk_size], unit)
        farthest.append(distances.amax(1).cpu().numpy())
        # An image comes first in its own neighbourhood, also where it has duplicates.
        distances.diagonal(start).fill_(-torch.inf)
        neighbours.append(distances.topk(k + 1, dim=1, largest=False).indices.cpu().numpy())
    return np.concatenate(neighbours), np.maximum(np.concatenate(farthest), SMALLEST_SCALE)


def _encode(
    unit: Tensor, neighbours: np.ndarray, farthest: np.ndarray, k2: int, strict: bool
) -> csr_array:
    """The encodings V of all images, (N, N) sparse, each row of sum 1."""
    k1 = neighbours.shape[1] - 1
    sets = _reciprocal(neighbours)
    smaller = _reciprocal(neighbours[:, : round(k1 / 2) + 1])
    shared = (sets @ smaller).multiply(sets).tocoo()  # |R(p, k1) & R(q, k1/2)| for q of R(p, k1)
    sizes = smaller.sum(1)
    excess = 3 * shared.data - 2 * sizes[shared.col]  # whole numbers, exact
    is_joined = excess > 0 if strict else excess >= 0
    joined = csr_array(
        (shared.data[is_joined], (shared.row[is_joined], shared.col[is_joined])), sets.shape
    )

    members = (sets + joined @ smaller).tocoo()
    weights = np.exp(-_pair_distances(unit, members.row, members.col) / farthest[members.row])
    encodings = csr_array((weights, (members.row, members.col)), sets.shape)
    encodings.data /= np.repeat(encodings.sum(1), np.diff(encodings.indptr))
    return _pattern(neighbours[:, :k2], 1 / k2) @ encodings


def _pattern(neighbours: np.ndarray, value: float) -> csr_array:
    """The sparse (N, N) matrix with a value where column g is among the neighbours of row p."""
    num_images, width = neighbours.shape
    starts = np.arange(0, num_images * width + 1, width)
    values = np.full(neighbours.size, value)
    return csr_array((values, neighbours.ravel(), starts), (num_images, num_images))


def _reciprocal(neighbours: np.ndarray) -> csr_array:
    """The sets R as a symmetric (N, N) sparse matrix of ones."""
    is_neighbour = _pattern(neighbours, 1.0)
    return is_neighbour.multiply(is_neighbour.T).tocsr()


def _pair_distances(unit: Tensor, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances of M pairs of images, (M,)."""
    distances = np.empty(len(first))
    chunk_size = max(1, CHUNK_ELEMENTS // unit.shape[1])
    for start in range(0, len(first), chunk_size):
        pairs = slice(start, start + chunk_size)
        one = unit[torch.from_numpy(first[pairs]).to(unit.device).long()]
        other = unit[torch.from_numpy(second[pairs]).to(unit.device).long()]
        distances[pairs] = (2 - 2 * (one * other).sum(1)).clamp_(min=0).cpu().numpy()
    return distances


def _overlaps(encodings: csr_array, holders: csr_array) -> np.ndarray:
    """Sum over j of min(V_pj, V_gj) for B encodings p and all gallery images g, (B, G).

    Encodings (B, N) are sparse, and so are `holders` (N, G): those of the gallery, by column.
    """
    overlaps = np.empty((encodings.shape[0], holders.shape[1]))
    for n in range(len(overlaps)):
        own = slice(encodings.indptr[n], encodings.indptr[n + 1])
        sharing = holders[encodings.indices[own]]
        weights = np.repeat(encodings.data[own], np.diff(sharing.indptr))
        overlaps[n] = np.bincount(
            sharing.indices, np.minimum(weights, sharing.data), minlength=overlaps.shape[1]
        )
    return overlaps
