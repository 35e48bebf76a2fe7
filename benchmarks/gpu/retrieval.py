"""Exact ranks of as many images as Stanford Online Products has: seconds, and the CPU's digits."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.section import Section
from benchmarks.speed.retrieval import make_embeddings
from metric_learning.retrieval import evaluate
from metric_learning.retrieval.search import nearest
from metric_learning.retrieval.verification import verification_scores


def retrieval(section: Section) -> None:
    """Rank on the device and on the CPU; verify, search, and multiply alone."""
    torch.set_num_threads(max(1, (os.cpu_count() or 2) - 1))
    for device in ("cpu", section.device):
        evaluate(*make_embeddings(400, 16), device=device)  # compiles, and loads kernels
    count = section.size(60502, 800)
    for dim in section.size((2048, 512), (32,)):
        embeddings, labels = make_embeddings(count, dim)

        def rank(embeddings: np.ndarray = embeddings, labels: np.ndarray = labels) -> dict:
            return compare(section, embeddings, labels)

        section.attempt(f"{count} x {dim}", rank, needs=15)

    large = section.size((10000, 10), (400, 4))
    section.attempt("large classes", lambda: large_classes(section, *large), needs=8)
    section.attempt("after matmul_precision high", lambda: after_high(section), needs=5)
    section.attempt("verification", lambda: verify(section, embeddings, labels), needs=8)

    def search() -> dict[str, float]:
        k, rows = min(1000, count - 1), np.arange(count)
        call = lambda: nearest(embeddings, embeddings, k, rows, section.device)  # noqa: E731
        return {"k": k, "seconds": section.seconds_of(call, 1, warm_up=0)}

    section.attempt("nearest", search, needs=6)


def compare(section: Section, embeddings: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Return the seconds of two rankings and of one on the CPU, and the digits that differ."""
    section.fresh_memory()
    row: dict[str, Any] = {}
    for turn in ("first", "second"):
        begin = time.perf_counter()
        found = evaluate(embeddings, labels, device=section.device)
        row[f"{turn} seconds"] = time.perf_counter() - begin
    row |= {"recall@1": found["recall@1"], "map@r": found["map@r"], **section.memory()}
    section.note(**{f"{len(labels)} x {embeddings.shape[1]}": row})  # the CPU may take too long

    rows = torch.from_numpy(embeddings).to(section.device)

    def products() -> None:
        for part in rows.split(4096):
            part @ rows.T

    row["seconds of bare products"] = section.seconds_of(products, 1, warm_up=1)
    begin = time.perf_counter()
    expected = evaluate(embeddings, labels, device="cpu")
    row["CPU seconds"] = time.perf_counter() - begin
    row["differs"] = {k: [found[k], expected[k]] for k in expected if found[k] != expected[k]}
    return row


def large_classes(section: Section, count: int, num_classes: int) -> dict[str, Any]:
    """Rank classes with many positives, on the device and on the CPU."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, num_classes, count)
    centres = rng.standard_normal((num_classes, 128), np.float32)
    embeddings = rng.standard_normal((count, 128), np.float32) + centres[labels]
    begin = time.perf_counter()
    found = evaluate(embeddings, labels, device=section.device)
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, "same": found == evaluate(embeddings, labels, device="cpu")}


def after_high(section: Section) -> dict[str, bool]:
    """Whether ranks are the same where products were allowed to be of lower precision."""
    data = make_embeddings(section.size(3000, 300), 256)
    before = evaluate(*data, device=section.device)
    torch.set_float32_matmul_precision("high")
    try:
        return {"same": evaluate(*data, device=section.device) == before}
    finally:
        torch.set_float32_matmul_precision("highest")


def verify(section: Section, embeddings: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Score all pairs: seconds, area under the curve, equal error rate."""
    begin = time.perf_counter()
    found = verification_scores(embeddings, labels, device=section.device)
    return {"seconds": time.perf_counter() - begin, "auc": found["auc"], "eer": found["eer"]}
