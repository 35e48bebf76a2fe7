"""The evaluations that `benchmarks.speed.retrieval` compares, and the process that measures one.

It runs under another interpreter too: beside NumPy it imports only what the measured method needs.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable
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
    """One way to evaluate: what prepares its search, what it does, the share of queries measured.

    `prepare` takes embeddings (N, D) float32 and labels (N,) int64 from 0, each at least twice, and
    returns the search of the first n images in all N.
    """

    prepare: Callable[[np.ndarray, np.ndarray], Search]
    job: str
    share: float = 1.0


def prepare_floor(embeddings: np.ndarray, labels: np.ndarray) -> Search:
    """Multiply all embeddings with all, and do nothing with the products."""
    out = np.empty((min(BLOCK_ROWS, len(embeddings)), len(embeddings)), np.float32)

    def search(num_queries: int) -> dict[str, float]:
        for start in range(0, num_queries, BLOCK_ROWS):
            rows = embeddings[start : min(start + BLOCK_ROWS, num_queries)]
            np.matmul(rows, embeddings.T, out=out[: len(rows)])
        return {}

    return search


def prepare_this(embeddings: np.ndarray, labels: np.ndarray) -> Search:
    """Evaluate with this project."""
    from metric_learning.retrieval import evaluate

    def search(num_queries: int) -> dict[str, float]:
        found = evaluate(embeddings, labels, range(1, min(max(KS), len(labels)) + 1))
        names = (*(f"recall@{k}" for k in KS), "map@r", "r_precision")
        return {name: found[name] for name in names if name in found}

    return search


def prepare_faiss(embeddings: np.ndarray, labels: np.ndarray) -> Search:
    """Search the nearest by inner product, block after block so as to hold few of them."""
    import faiss

    unit = embeddings.copy()
    faiss.normalize_L2(unit)
    index = faiss.IndexFlatIP(unit.shape[1])
    index.add(unit)
    k = min(max(KS) + 1, len(unit))
    num_positives = np.bincount(labels)[labels] - 1

    def search(num_queries: int) -> dict[str, float]:
        blocks = []
        for start in range(0, num_queries, BLOCK_ROWS):
            stop = min(start + BLOCK_ROWS, num_queries)
            found = index.search(unit[start:stop], k)[1]
            neighbours = without_self(found, np.arange(start, stop))
            is_hit = labels[neighbours] == labels[start:stop, None]
            blocks.append(score_hits(is_hit, num_positives[start:stop]))
        scores = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
        return {name: values.mean() for name, values in scores.items()}

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
    """Evaluate with pytorch-metric-learning."""
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
    """Evaluate with open-metric-learning."""
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
    """Sort all distances, as the reference does, without its sending of blocks to processes."""
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    squares = np.square(unit).sum(1)
    height = max(1, len(unit) // REFERENCE_BLOCKS)

    def search(num_queries: int) -> dict[str, float]:
        blocks = []
        for start in range(0, num_queries, height):
            stop = min(start + height, num_queries)
            distances = squares[start:stop, None] + squares - 2 * (unit[start:stop] @ unit.T)
            distances[np.arange(stop - start), np.arange(start, stop)] += SELF_DISTANCE
            order = np.argsort(distances, axis=1)
            blocks.append(order[:, :REFERENCE_NEIGHBOURS].copy())  # a view would keep all of it
        is_hit = labels[np.concatenate(blocks)] == labels[:num_queries, None]
        return {f"recall@{k}": is_hit[:, :k].any(1).mean() for k in KS if k <= REFERENCE_NEIGHBOURS}

    return search


METHODS = {
    "floor": Method(
        prepare_floor, f"product of all with all in float32, {BLOCK_ROWS} rows at a time, no more"
    ),
    "this": Method(
        prepare_this,
        "retrieval.evaluate: Recall@1 to @1000, MAP@R, R-precision, MAP, MRR and mINP, exactly",
    ),
    "faiss": Method(
        prepare_faiss,
        "IndexFlatIP, the 1,001 nearest, query removed by row: Recall@1, 10, 100, 1000, MAP@R",
    ),
    "pml": Method(
        prepare_pml,
        "pytorch-metric-learning's AccuracyCalculator, k=max_bin_count: Precision@1, MAP@R",
    ),
    "oml": Method(
        prepare_oml,
        "open-metric-learning's batched_knn (1,001 nearest), RetrievalResults and "
        "calc_retrieval_metrics_rr: CMC@1, 10, 100, 1000, MAP@10",
        0.1,
    ),
    "reference": Method(
        prepare_reference,
        "the reference's method: all distances of a block of queries sorted, 10 kept: Recall@1, 10",
        0.02,
    ),
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
