"""Second passes over retrieval: query expansion, gallery augmentation, k-reciprocal re-ranking."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from metric_learning.common.parameters import parse_options
from metric_learning.retrieval.reciprocal import check_parameters, k_reciprocal_similarities
from metric_learning.retrieval.search import nearest
from metric_learning.retrieval.unit import unit_rows

RERANK_OPTIONS: dict[str, dict[str, float]] = {  # method -> parameter -> default
    "qe": {"k": 10, "alpha": 3.0},
    "dba": {"k": 10, "alpha": 3.0},
    "kreciprocal": {"k1": 20, "k2": 6, "lambda": 0.3, "strict": 0},
}
CHUNK_ELEMENTS = 2**24  # float64 similarities held at once: 128 MiB


@dataclass(frozen=True)
class Rerank:
    """A method of re-ranking, a key of RERANK_OPTIONS, with all its parameters."""

    method: str
    options: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.method}:{','.join(f'{name}={v:g}' for name, v in self.options.items())}"


def parse_rerank(text: str) -> Rerank:
    """Parse `METHOD` or `METHOD:name=value,name=value`, e.g. `qe:k=10,alpha=3`.

    Raises:
        ValueError: an unknown method or parameter, or a value that is no number.
    """
    method, _, parameters = text.partition(":")
    if method not in RERANK_OPTIONS:
        raise ValueError(
            f"expected re-ranking by {', '.join(RERANK_OPTIONS)}, found {method!r}: e.g. "
            "qe:k=10,alpha=3 or kreciprocal:k1=20,k2=6,lambda=0.3"
        )
    defaults = RERANK_OPTIONS[method]
    types = {name: type(default) for name, default in defaults.items()}
    return Rerank(method, defaults | parse_options(parameters, types, f"re-ranking by {method}"))


def check_rerank(
    rerank: Rerank, num_queries: int, gallery_size: int | None = None, num_both: int = 0
) -> None:
    """Raise ValueError, before images are embedded, where they are too few for a method.

    Without a `gallery_size` the queries are the gallery; else it holds `num_both` of them.
    """
    if rerank.method == "kreciprocal":
        k1, k2, share = (rerank.options[name] for name in ("k1", "k2", "lambda"))
        check_parameters(k1, k2, share, num_queries + (gallery_size or 0) - num_both)
        return

    is_within = gallery_size is None or num_both > 0 or rerank.method == "dba"
    findable = (num_queries if gallery_size is None else gallery_size) - is_within
    if not 1 <= rerank.options["k"] <= findable:
        raise ValueError(
            f"re-ranking by {rerank}: expected k to be 1 to {findable}, as many as can be found"
        )
    if rerank.options["alpha"] < 0:
        raise ValueError(f"re-ranking by {rerank}: expected alpha to be 0 or more")


def reranked_similarities(
    rerank: Rerank,
    queries: np.ndarray,
    gallery: np.ndarray | None = None,
    device: str | torch.device = "cpu",
    own_rows: np.ndarray | None = None,
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield the similarities after a re-ranking, queries chunk by chunk.

    qe: expanded queries in the gallery as it is; dba: queries as they are in the augmented gallery;
    both by cosine. Arguments, results and errors are otherwise those of
    `retrieval.reciprocal.k_reciprocal_similarities`; the column of a query itself means nothing.
    """
    if rerank.method == "kreciprocal":
        k1, k2, share, strict = (rerank.options[n] for n in ("k1", "k2", "lambda", "strict"))
        if strict not in (0, 1):
            raise ValueError(f"expected strict to be 0 or 1, found {strict}")
        yield from k_reciprocal_similarities(
            queries, gallery, k1, k2, share, device, bool(strict), own_rows
        )
        return

    k, alpha = rerank.options["k"], rerank.options["alpha"]
    searched = queries if gallery is None else gallery
    if rerank.method == "qe":
        queries = expand_queries(queries, gallery, k, alpha, device, own_rows)
    else:
        searched = augment_gallery(searched, k, alpha, device)

    asking, asked = (unit_rows(rows, torch.float64, device) for rows in (queries, searched))
    chunk_size = max(1, CHUNK_ELEMENTS // len(asked))
    for start in range(0, len(asking), chunk_size):
        rows = slice(start, min(start + chunk_size, len(asking)))
        yield rows, (asking[rows] @ asked.T).cpu().numpy()


def expand_queries(
    queries: np.ndarray,
    gallery: np.ndarray | None = None,
    k: int = 10,
    alpha: float = 3.0,
    device: str | torch.device = "cpu",
    own_rows: np.ndarray | None = None,
) -> np.ndarray:
    """Add to each query its nearest gallery images, weighted by similarity: alpha-QE.

    q' = normalise(q + sum over the k nearest g of max(0, q.g)^alpha g), q and g of length 1.
    Fine-tuning CNN image retrieval with no human annotation (Radenovic et al. 2018),
    https://arxiv.org/abs/1711.02512. alpha = 0 is average query expansion (Chum et al. 2007,
    https://doi.org/10.1109/ICCV.2007.4408891). The result (Q, D) float32 of length 1 searches the
    gallery as it is.

    Args:
        queries: (Q, D) float embeddings, any scale.
        gallery: (G, D) float embeddings; None where the queries are the gallery: a query's own row
            is then none of its neighbours, and it counts once, with weight 1.
        k: neighbours that are added.
        alpha: exponent of the cosine, at least 0: the higher, the less do far images count.
        device: where the similarities are computed.
        own_rows: (Q,) int64, the gallery row that is the query itself and is likewise none of its
            neighbours, -1 if it is not there.

    Raises:
        ValueError: k is not in the range that so many images allow, or alpha is negative.
    """
    if alpha < 0:
        raise ValueError(f"expected alpha to be 0 or more, found {alpha}")
    if gallery is None:
        gallery, own_rows = queries, np.arange(len(queries))
    rows, cosines = nearest(queries, gallery, k, own_rows, device)
    neighbours = unit_rows(gallery).numpy()
    expanded = unit_rows(queries).numpy()
    weights = np.maximum(cosines, 0) ** np.float32(alpha)  # QxK
    for n in range(k):  # a neighbour at a time: (Q, k, D) would not fit into memory
        expanded += weights[:, n, None] * neighbours[rows[:, n]]
    return unit_rows(expanded).numpy()


def augment_gallery(
    gallery: np.ndarray, k: int = 10, alpha: float = 3.0, device: str | torch.device = "cpu"
) -> np.ndarray:
    """Add to each gallery image its nearest others: database-side augmentation.

    As `expand_queries` does with queries that are the gallery. Three things everyone should know
    to improve object retrieval (Arandjelovic & Zisserman 2012),
    https://doi.org/10.1109/CVPR.2012.6248018; with the weights of Radenovic et al. 2018. Where the
    queries, which search it as they are, are in it, images near a query hold a share of it.
    """
    return expand_queries(gallery, None, k, alpha, device)
