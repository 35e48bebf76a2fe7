"""Exact ranks of as many images as Stanford Online Products has: seconds, and the CPU's digits."""

from __future__ import annotations

import os
import time
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.section import Section
from benchmarks.speed.retrieval import make_embeddings
from metric_learning.retrieval import evaluate
from metric_learning.retrieval.search import nearest
from metric_learning.retrieval.verification import verification_scores


def retrieval(section: Section) -> None:
    """Rank on the device and on the CPU; verify and search."""
    torch.set_num_threads(max(1, (os.cpu_count() or 2) - 1))
    device, count = section.device, section.size(60502, 800)
    for where in ("cpu", device):
        evaluate(*make_embeddings(400, 16), device=where)  # compiles, and loads kernels
    for dim in section.size((2048, 512), (32,)):
        data = make_embeddings(count, dim)
        section.attempt(f"{count} x {dim}", compare, section, *data)
        section.attempt(f"{count} x {dim}, products alone", multiply, section, data[0])

    section.attempt("large classes", compare, section, *large_classes(section))
    section.attempt("after matmul_precision high", after_high, section)
    verify = partial(verification_scores, *data, device=device)
    section.attempt("verification, seconds", section.seconds_of, verify, 1)
    rows = np.arange(count)
    search = partial(nearest, data[0], data[0], min(1000, count - 1), rows, device)
    section.attempt("nearest 1000, seconds", section.seconds_of, search, 1)


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

    begin = time.perf_counter()
    expected = evaluate(embeddings, labels, device="cpu")
    row["CPU seconds"] = time.perf_counter() - begin
    row["differs"] = {k: [found[k], expected[k]] for k in expected if found[k] != expected[k]}
    return row


def multiply(section: Section, embeddings: np.ndarray) -> float:
    """Return the seconds of the product of all with all."""
    rows = torch.from_numpy(embeddings).to(section.device)

    def products() -> None:
        for part in rows.split(2048):
            torch.mm(part, rows.T)

    return section.seconds_of(products, 1, warm_up=1)


def large_classes(section: Section) -> tuple[np.ndarray, np.ndarray]:
    """Draw embeddings of classes in which each image has many positives."""
    count, num_classes = section.size((10000, 10), (400, 4))
    rng = np.random.default_rng(0)
    labels = rng.integers(0, num_classes, count)
    centres = rng.standard_normal((num_classes, 128), np.float32)
    return rng.standard_normal((count, 128), np.float32) + centres[labels], labels


def after_high(section: Section) -> dict[str, bool]:
    """Whether ranks are the same where products were allowed to be of lower precision."""
    data = make_embeddings(section.size(3000, 300), 256)
    before = evaluate(*data, device=section.device)
    torch.set_float32_matmul_precision("high")
    try:
        return {"same": evaluate(*data, device=section.device) == before}
    finally:
        torch.set_float32_matmul_precision("highest")
