"""Exact ranks of as many images as Stanford Online Products has: seconds, and the CPU's digits."""

from __future__ import annotations

import os
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
    section.attempt("large classes", compare, section, *large_classes(section))

    rows = np.arange(count)
    units = torch.from_numpy(data[0]).to(device)
    calls = {
        "products alone": lambda: [torch.mm(part, units.T) for part in units.split(2048)][-1],
        "verification": partial(verification_scores, *data, device=device),
        "nearest 1000": partial(nearest, data[0], data[0], min(1000, count - 1), rows, device),
    }
    for name, call in calls.items():
        section.attempt(f"{name}, seconds", section.seconds_of, call, 1)


def compare(section: Section, embeddings: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Return the rate of rankings, the seconds of one on the CPU, and the digits that differ."""
    here: dict[str, float] = {}
    there: dict[str, float] = {}
    rank, count = partial(evaluate, embeddings, labels), len(labels)
    rate = section.rate_of(lambda: here.update(rank(device=section.device)), count, 1, warm_up=1)
    row = {**rate, "recall@1": here["recall@1"], "map@r": here["map@r"]}
    section.note(**{f"{count} x {embeddings.shape[1]}": row})  # the CPU may take too long

    seconds = section.seconds_of(lambda: there.update(rank(device="cpu")), 1)
    differs = {key: [here[key], there[key]] for key in there if here[key] != there[key]}
    return {**row, "CPU seconds": seconds, "differs": differs}


def large_classes(section: Section) -> tuple[np.ndarray, np.ndarray]:
    """Draw embeddings of classes in which each image has many positives."""
    count, num_classes = section.size((10000, 10), (400, 4))
    rng = np.random.default_rng(0)
    labels = rng.integers(0, num_classes, count)
    centres = rng.standard_normal((num_classes, 128), np.float32)
    return rng.standard_normal((count, 128), np.float32) + centres[labels], labels
