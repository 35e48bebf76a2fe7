"""The kinds of search indexes: their parameters and how faiss builds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from metric_learning.common.optional import import_optional
from metric_learning.retrieval.unit import unit_embeddings, unit_pieces

INDEX_OPTIONS: dict[str, tuple[str, ...]] = {
    "exact": (),
    "ivf": ("nlist", "nprobe"),
    "ivfpq": ("nlist", "nprobe", "m"),
    "hnsw": ("m", "ef_construction", "ef_search"),
}
POINTS_PER_CENTROID = 39  # below it faiss calls k-means poor
NUM_CODES = 256  # centroids per part of a vector in ivfpq: what a byte can number

Found = tuple[np.ndarray, np.ndarray]  # cosines and numbers, (Q, k) each, as faiss returns them


def choose_options(
    kind: str, given: Mapping[str, int], num_images: int, dim: int
) -> dict[str, int]:
    """Return every parameter of a kind of index for N images: those given, and defaults for others.

    Raises:
        ValueError: an unknown kind or parameter, a value out of range, or too few images.
    """
    if kind not in INDEX_OPTIONS:
        raise ValueError(f"expected an index of {', '.join(INDEX_OPTIONS)}, found {kind!r}")
    unknown = [name for name in given if name not in INDEX_OPTIONS[kind]]
    if unknown:
        known = ", ".join(INDEX_OPTIONS[kind]) or "none"
        raise ValueError(f"index {kind} has no parameter {unknown[0]}: its parameters are {known}")

    # Defaults, and the largest values that are possible.
    most: dict[str, int] = {}
    defaults: dict[str, int] = {}
    if kind == "hnsw":
        defaults = {"m": 32, "ef_construction": 200, "ef_search": 128}
    if kind in ("ivf", "ivfpq"):
        most_lists = max(1, num_images // POINTS_PER_CENTROID)
        nlist = given.get("nlist", min(most_lists, round(4 * num_images**0.5)))
        most = {"nlist": num_images, "nprobe": nlist}
        defaults = {"nlist": nlist, "nprobe": min(nlist, max(8, nlist // 16))}
    if kind == "ivfpq":
        if num_images < NUM_CODES:
            raise ValueError(
                f"index ivfpq learns from {NUM_CODES} images or more, found {num_images}: "
                "choose exact"
            )
        divisors = [m for m in range(1, dim + 1) if dim % m == 0]
        defaults["m"] = max(m for m in divisors if m <= max(1, dim // 8))
        if given.get("m", 1) not in divisors:
            raise ValueError(f"index ivfpq: m = {given['m']} does not divide {dim} dimensions")

    for name, value in given.items():
        least = 2 if (kind, name) == ("hnsw", "m") else 1
        if not least <= value <= most.get(name, value):
            expected = f"{least} to {most[name]}" if name in most else f"{least} or more"
            raise ValueError(f"index {kind}: expected {name} to be {expected}, found {value}")
    return defaults | dict(given)


def build_vectors(features: np.ndarray, kind: str, options: Mapping[str, int]) -> Any:
    """Build the faiss index of embeddings (N, D) of any scale; all parameters are needed.

    `exact` copies them into it piece by piece, so that what is in files is in memory once. The
    other kinds take one copy more while they are built.
    """
    faiss = import_faiss()
    nlist, m = options.get("nlist"), options.get("m")
    recipes = {
        "exact": "Flat",
        "ivf": f"IVF{nlist},Flat",
        "ivfpq": f"IVF{nlist},PQ{m}x8np",  # np: no polysemous training, which takes minutes
        "hnsw": f"HNSW{m},Flat",
    }
    vectors = faiss.index_factory(features.shape[1], recipes[kind], faiss.METRIC_INNER_PRODUCT)
    if kind == "exact":
        _fill(vectors, features)
        return vectors

    if kind == "hnsw":
        vectors.hnsw.efConstruction = options["ef_construction"]
        vectors.hnsw.efSearch = options["ef_search"]
    if nlist is not None:
        vectors.nprobe = options["nprobe"]
        # faiss's warnings of small data go to stderr; the measured recall says it better.
        vectors.cp.min_points_per_centroid = 1
    if kind == "ivfpq":
        vectors.pq.cp.min_points_per_centroid = 1

    unit = unit_embeddings(features)
    vectors.train(unit)
    vectors.add(unit)
    return vectors


def _fill(vectors: Any, features: np.ndarray) -> None:
    """Write embeddings into a flat faiss index, which is empty; `add` would copy what it grows."""
    size = features.shape[0] * features.shape[1]
    vectors.codes.resize(size * np.dtype(np.float32).itemsize)
    rows = import_faiss().rev_swig_ptr(vectors.get_xb(), size).reshape(features.shape)
    for start, unit in unit_pieces(features):
        rows[start : start + len(unit)] = unit
    vectors.ntotal = len(rows)


def remove_vectors(vectors: Any, kind: str, rows: np.ndarray) -> None:
    """Take vectors out of a faiss index, (M,) int64; those behind them move up, as in a list.

    A graph (`hnsw`) cannot lose a node: who holds it leaves those out that are marked as removed.
    """
    assert kind != "hnsw"
    faiss = import_faiss()
    kept = np.ones(vectors.ntotal, bool)
    kept[rows] = False
    vectors.remove_ids(faiss.IDSelectorBatch(rows))
    if kind == "exact":
        return

    # The lists of cells keep the numbers that their vectors had.
    new_numbers = np.cumsum(kept) - 1
    lists = faiss.extract_index_ivf(vectors).invlists
    for number in range(lists.nlist):
        size = lists.list_size(number)
        if size:
            numbers = faiss.rev_swig_ptr(lists.get_ids(number), size)
            numbers[:] = new_numbers[numbers]


def search_vectors(vectors: Any, queries: np.ndarray, k: int, removed: np.ndarray) -> Found:
    """Search a faiss index as it was built; of a graph, leave out the nodes that are `removed`."""
    if not len(removed):
        found: Found = vectors.search(queries, k)
        return found
    faiss = import_faiss()
    selector = faiss.IDSelectorNot(faiss.IDSelectorBatch(removed))
    wide = max(vectors.hnsw.efSearch, k)
    parameters = faiss.SearchParametersHNSW(sel=selector, efSearch=wide)
    return _search(vectors, queries, k, parameters)


def search_everything(
    vectors: Any, kind: str, queries: np.ndarray, k: int, among: np.ndarray
) -> Found:
    """Compare queries with every vector of a faiss index whose number is `among` (M,) int64."""
    faiss = import_faiss()
    selector = faiss.IDSelectorBatch(among)
    if kind in ("exact", "hnsw"):
        flat = vectors if kind == "exact" else faiss.downcast_index(vectors.storage)
        return _search(flat, queries, k, faiss.SearchParameters(sel=selector))
    lists = faiss.extract_index_ivf(vectors)
    parameters = faiss.SearchParametersIVF(sel=selector, nprobe=lists.nlist)
    return _search(vectors, queries, k, parameters)


def _search(vectors: Any, queries: np.ndarray, k: int, parameters: Any) -> Found:
    """Search a faiss index with parameters.

    `faiss.contrib.torch_utils`, which pytorch-metric-learning imports, puts a search without any in
    the place of faiss' own, and leaves that under another name.
    """
    search = getattr(vectors, "search_numpy", vectors.search)
    found: Found = search(queries, k, params=parameters)
    return found


def is_of_kind(vectors: Any, kind: str) -> bool:
    """Whether a faiss index that was read from a file is of a kind, and ready to be searched."""
    faiss = import_faiss()
    classes = {
        "exact": faiss.IndexFlat,
        "ivf": faiss.IndexIVFFlat,
        "ivfpq": faiss.IndexIVFPQ,
        "hnsw": faiss.IndexHNSWFlat,
    }
    is_ready = vectors.is_trained and vectors.metric_type == faiss.METRIC_INNER_PRODUCT
    return bool(is_ready and isinstance(faiss.downcast_index(vectors), classes[kind]))


def import_faiss() -> Any:
    """Import faiss, which only a search index needs; ValueError where it is not installed."""
    return import_optional("faiss", "a search index", "faiss-cpu")
