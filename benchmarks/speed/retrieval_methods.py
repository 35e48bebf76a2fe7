"""The evaluations that `benchmarks.speed.retrieval` compares, and the process that measures one.

It runs under another interpreter too: beside NumPy it imports only what the measured method needs.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.common import clocks, memory, seconds_of, versions

BLOCK_ROWS = 4096  # queries that the floor and faiss are given at a time
KS = (1, 10, 100, 1000)
REFERENCE_BLOCKS = 100  # that the reference cuts the queries into
REFERENCE_NEIGHBOURS = 10  # that it keeps
SELF_DISTANCE = 1e8  # that it adds between an image and itself
WARM_UP_CLASSES = 400  # about 2,000 images
Search = Callable[[int], dict[str, float]]  # number of queries -> metrics, as fractions


class Method(NamedTuple):
    """One way to evaluate: what prepares its search, the share of queries that are measured.

    `prepare` takes embeddings (N, D) float32 and labels (N,) int64 from 0, each at least twice, and
    returns the search of the first n images in all N.
    """

    prepare: Callable[[np.ndarray, np.ndarray], Search]
    share: float = 1.0


def blocks(num_queries: int, height: int) -> Iterator[slice]:
    """Yield the rows of each block of queries."""
    for start in range(0, num_queries, height):
        yield slice(start, min(start + height, num_queries))


def prepare_floor(embeddings: np.ndarray, labels: np.ndarray) -> Search:
    """Multiply all embeddings with all in float32, 4,096 rows at a time, and do no more."""
    out = np.empty((min(BLOCK_ROWS, len(embeddings)), len(embeddings)), np.float32)

    def search(num_queries: int) -> dict[str, float]:
        for rows in blocks(num_queries, BLOCK_ROWS):
            np.matmul(embeddings[rows], embeddings.T, out=out[: rows.stop - rows.start])
        return {}

    return search


def prepare_this(embeddings: np.ndarray, labels: np.ndarray) -> Search:
    """Evaluate with retrieval.evaluate: Recall@1 to @1000, MAP@R, MAP, MRR and mINP, exactly."""
    from metric_learning.retrieval import evaluate

    def search(num_queries: int) -> dict[str, float]:
        found = evaluate(embeddings, labels, range(1, min(max(KS), len(labels)) + 1))
        names = (*(f"recall@{k}" for k in KS), "map@r", "r_precision")
        return {name: found[name] for name in names if name in found}

    return search


def prepare_faiss(embeddings: np.ndarray, labels: np.ndarray) -> Search:
    """Search the 1,001 nearest by IndexFlatIP: Recall@1, 10, 100, 1000, MAP@R."""
    import faiss

    unit = embeddings.copy()
    faiss.normalize_L2(unit)
    index = faiss.IndexFlatIP(unit.shape[1])
    index.add(unit)
    k = min(max(KS) + 1, len(unit))
    num_positives = np.bincount(labels)[labels] - 1

    def search(num_queries: int) -> dict[str, float]:
        scores = []
        for rows in blocks(num_queries, BLOCK_ROWS):
            found = index.search(unit[rows], k)[1]
            neighbours = without_self(found, np.arange(rows.start, rows.stop))
            is_hit = labels[neighbours] == labels[rows, None]
            scores.append(score_hits(is_hit, num_positives[rows]))
        return {name: np.concatenate([s[name] for s in scores]).mean() for name in scores[0]}

    return search


def without_self(neighbours: np.ndarray, own_rows: np.ndarray) -> np.ndarray:
    """Drop each query from its neighbours: (Q, k) -> (Q, k - 1), the last where it is not there."""
    is_other = neighbours != own_rows[:, None]
    is_other[is_other.all(1), -1] = False
    return neighbours[is_other].reshape(len(neighbours), -1)


def score_hits(is_hit: np.ndarray, num_positives: np.ndarray) -> dict[str, np.ndarray]:
    """Compute recall@K and map@r (Q,) from which neighbours (Q, k) are of the query's class."""
    first = np.where(is_hit.any(1), is_hit.argmax(1), is_hit.shape[1])
    scores = {f"recall@{k}": first < k for k in KS}
    order = np.arange(1, min(num_positives.max(), is_hit.shape[1]) + 1)
    is_counted = is_hit[:, : len(order)] & (order <= num_positives[:, None])
    precisions = np.cumsum(is_counted, axis=1) / order
    scores["map@r"] = (precisions * is_counted).sum(1) / num_positives
    return scores


def prepare_pml(embeddings: np.ndarray, labels: np.ndarray) -> Search:
    """Evaluate with pytorch-metric-learning's AccuracyCalculator: Precision@1, MAP@R."""
    import torch
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    names = {"precision_at_1": "recall@1", "mean_average_precision_at_r": "map@r"}
    calculator = AccuracyCalculator(include=tuple(names), k="max_bin_count")
    unit = torch.nn.functional.normalize(torch.from_numpy(embeddings))

    def search(num_queries: int) -> dict[str, float]:
        found = calculator.get_accuracy(unit, torch.from_numpy(labels))
        return {name: found[peer] for peer, name in names.items()}

    return search


def prepare_oml(embeddings: np.ndarray, labels: np.ndarray) -> Search:
    """Evaluate with open-metric-learning, 1,001 nearest: CMC@1, 10, 100, 1000, MAP@10."""
    import torch
    from oml.functional.knn import batched_knn
    from oml.metrics.embeddings import calc_retrieval_metrics_rr
    from oml.retrieval import RetrievalResults

    unit = torch.nn.functional.normalize(torch.from_numpy(embeddings))
    classes, rows = torch.from_numpy(labels), torch.arange(len(unit))

    def search(num_queries: int) -> dict[str, float]:
        # What RetrievalResults.from_embeddings does, which asks for a data set with its images.
        nearest = batched_knn(unit, rows[:num_queries], rows, max(KS) + 1, labels_gt=classes)
        results = RetrievalResults(*nearest)
        found = calc_retrieval_metrics_rr(
            results, cmc_top_k=KS, precision_top_k=(), map_top_k=(10,), verbose=False
        )
        return {f"recall@{k}": float(found["cmc"][k]) for k in KS}

    return search


def prepare_reference(embeddings: np.ndarray, labels: np.ndarray) -> Search:
    """Sort all distances and keep 10, as the reference does in many processes: Recall@1, 10."""
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    squares = np.square(unit).sum(1)
    height = max(1, len(unit) // REFERENCE_BLOCKS)

    def search(num_queries: int) -> dict[str, float]:
        nearest = []
        for rows in blocks(num_queries, height):
            distances = squares[rows, None] + squares - 2 * (unit[rows] @ unit.T)
            distances[:, rows] += SELF_DISTANCE * np.eye(rows.stop - rows.start)
            order = np.argsort(distances, axis=1)
            nearest.append(order[:, :REFERENCE_NEIGHBOURS].copy())  # a view would keep all of it
        is_hit = labels[np.concatenate(nearest)] == labels[:num_queries, None]
        return {f"recall@{k}": is_hit[:, :k].any(1).mean() for k in KS if k <= REFERENCE_NEIGHBOURS}

    return search


METHODS = {
    "floor": Method(prepare_floor),
    "this": Method(prepare_this),
    "faiss": Method(prepare_faiss),
    "pml": Method(prepare_pml),
    "oml": Method(prepare_oml, 0.1),
    "reference": Method(prepare_reference, 0.02),
}


def measure(
    method: Method, embeddings: np.ndarray, labels: np.ndarray, num_queries: int
) -> dict[str, Any]:
    """Run a method once, warmed up, and say what it took."""
    is_warm_up = labels < WARM_UP_CLASSES
    small = embeddings[is_warm_up], labels[is_warm_up]
    method.prepare(*small)(len(small[0]))
    gc.collect()

    held = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew: man 5 proc
    started = clocks()
    search = method.prepare(embeddings, labels)
    prepared = clocks()
    found = search(num_queries)
    done = clocks()

    return {
        **seconds_of(prepared - started + (done - prepared) * (len(embeddings) / num_queries)),
        "peak_bytes": memory("VmHWM") - held,
        "found": {name: float(value) for name, value in found.items()},
        "versions": versions(),
    }


def main() -> None:
    """Measure METHOD on the .npy files of FOLDER with NUM_QUERIES; the last line is the result."""
    name, folder, num_queries = sys.argv[1:]
    embeddings, labels = (np.load(f"{folder}/{what}.npy") for what in ("embeddings", "labels"))
    print(json.dumps(measure(METHODS[name], embeddings, labels, int(num_queries))))


if __name__ == "__main__":
    main()
