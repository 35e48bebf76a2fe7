"""Pairs of embeddings above a cosine: all of them, or by an index where there are many."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm

from metric_learning.retrieval.counting.choose import is_compiled
from metric_learning.retrieval.counting.full_precision import full_precision
from metric_learning.retrieval.counting.thresholds import rounding_error
from metric_learning.retrieval.index_kinds import build_vectors, choose_options
from metric_learning.retrieval.unit import SMALLEST_NORM, unit_rows

BLOCK = 4096  # rows and columns of the similarities that are computed at once
DECIDED = 2**16  # pairs whose cosines float64 decides at once
MOST_EXACT = 10_000_000  # embeddings up to which no pair is left out
MOST_PAIRS = 10_000_000  # that are kept, in 1 GB; of a thousand copies there are half a million
NUM_MEASURED = 1000  # embeddings whose pairs are compared, to tell what an index finds


Found = tuple[np.ndarray, np.ndarray, np.ndarray]  # rows, others and their cosines


class Pairs(NamedTuple):
    """Pairs (M,) by their rows, in the order of `rows` and then of `others`.

    `recall` is the share of all pairs that were found, as it was measured; 1 of exact ones.
    """

    rows: np.ndarray
    others: np.ndarray
    cosines: np.ndarray
    recall: float = 1.0


def find_near_pairs(
    features: np.ndarray,
    against: np.ndarray | None,
    threshold: float,
    device: str | torch.device = "cpu",
    most_exact: int = MOST_EXACT,
) -> Pairs:
    """Find the pairs whose cosine is at least `threshold`: of N embeddings, or of N with M others.

    Cosines are float32, rounded from float64, and the threshold is rounded alike. Up to
    `most_exact` embeddings all pairs are found, in a time that grows with N x N; beyond, faiss's
    inverted file looks for them, and what it misses is measured on some.

    Args:
        features: (N, D) float, any scale.
        against: (M, D) float, or None for pairs among the features.
        threshold: from -1 to 1.
        device: where similarities are computed exactly.
        most_exact: see above.

    Raises:
        ValueError: dimensions that differ, embeddings that are not finite, more than MOST_PAIRS.
    """
    if against is not None and against.shape[1] != features.shape[1]:
        raise ValueError(
            f"features of {features.shape[1]} and of {against.shape[1]} dimensions cannot be "
            "compared: expected those of one model"
        )
    ours = _finite_rows(features, device)
    theirs = None if against is None else _finite_rows(against, device)
    if max(len(ours), 0 if theirs is None else len(theirs)) <= most_exact:
        with contextlib.closing(_exact(ours, theirs, threshold)) as parts:
            return _joined(parts)
    return _by_index(ours, theirs, threshold)


def group_pairs(pairs: Pairs, num_rows: int) -> np.ndarray:
    """Number the groups of embeddings that pairs connect: (N,) int64, -1 for those in no pair."""
    edges = (np.ones(len(pairs.rows)), (pairs.rows, pairs.others))
    _, groups = connected_components(coo_array(edges, (num_rows, num_rows)), directed=False)
    is_paired = np.zeros(num_rows, bool)
    is_paired[pairs.rows] = is_paired[pairs.others] = True
    numbers = np.full(num_rows, -1, np.int64)
    _, first, inverse = np.unique(groups[is_paired], return_index=True, return_inverse=True)
    numbers[is_paired] = np.argsort(np.argsort(first))[inverse]
    return numbers


def _finite_rows(features: np.ndarray, device: str | torch.device) -> torch.Tensor:
    """Return `unit_rows`; ValueError where one is not finite."""
    unit = unit_rows(features, device=device)
    is_finite = torch.cat([part.isfinite().all(1) for part in torch.split(unit, BLOCK)])
    if not is_finite.all():
        first = int(is_finite.int().argmin())
        raise ValueError(f"features hold NaN or infinity, first in row {first}: write them again")
    return unit


def _exact(
    ours: torch.Tensor, theirs: torch.Tensor | None, threshold: float
) -> Generator[Found, None, None]:
    """Yield all pairs, some at once: compiled on the CPU, else by torch."""
    if is_compiled(ours.device):
        from metric_learning.retrieval.counting.cpu.near import can_search, search_pairs

        if can_search():
            others = None if theirs is None else theirs.numpy()
            yield from search_pairs(ours.numpy(), others, threshold, MOST_PAIRS)
            return
    with full_precision():
        yield from _by_torch(ours, theirs, threshold)


def _by_torch(ours: torch.Tensor, theirs: torch.Tensor | None, threshold: float) -> Iterator[Found]:
    """Yield the pairs of one block of similarities after the other; float64 decides near ones."""
    columns = ours if theirs is None else theirs
    lowest = threshold - rounding_error(ours.shape[1], np.float32)
    starts = range(0, len(ours), BLOCK)

    for start in tqdm(starts, desc="comparing", unit="block", disable=None, leave=False):
        for other in range(start if theirs is None else 0, len(columns), BLOCK):
            cosines = ours[start : start + BLOCK] @ columns[other : other + BLOCK].T
            is_near = cosines >= lowest
            if theirs is None and other == start:
                is_near.triu_(1)
            if not is_near.any():  # which takes a fraction of the search for places
                continue
            rows, others = is_near.nonzero(as_tuple=True)
            numbers = [torch.split(part, DECIDED) for part in (rows + start, others + other)]
            for some, their in zip(*numbers, strict=True):
                yield _decided(ours, columns, some, their, threshold)


def _decided(
    ours: torch.Tensor,
    theirs: torch.Tensor,
    rows: torch.Tensor,
    others: torch.Tensor,
    threshold: float,
) -> Found:
    """Return those pairs, of (M,) rows, whose cosine in float64 is near, rounded to float32."""
    sides = ours[rows].double(), theirs[others].double()
    norms = (sides[0].norm(dim=1) * sides[1].norm(dim=1)).clamp_min(SMALLEST_NORM)
    cosines = ((sides[0] * sides[1]).sum(1) / norms).float()
    is_near = cosines >= threshold
    values = (each[is_near].cpu().numpy() for each in (rows, others, cosines))
    return next(values), next(values), next(values)


def _joined(parts: Iterator[Found]) -> Pairs:
    """Put pairs together; ValueError where there are more than memory should hold."""
    found = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))]
    count = 0
    for part in parts:
        found.append(part)
        count += len(part[0])
        if count > MOST_PAIRS:
            rows, counts = np.unique(np.concatenate([r for r, _, _ in found]), return_counts=True)
            raise ValueError(
                f"more than {MOST_PAIRS:,} pairs are near duplicates, {counts.max():,} of them of "
                f"image {rows[counts.argmax()]}: give a higher --threshold, or take out copies "
                "before the features are made (python -m data.prepare filter --threshold=0)"
            )

    rows, others, cosines = (np.concatenate(values) for values in zip(*found, strict=True))
    order = np.lexsort((others, rows))
    return Pairs(rows[order], others[order], cosines[order])


def _by_index(ours: torch.Tensor, theirs: torch.Tensor | None, threshold: float) -> Pairs:
    """Find pairs by an inverted file, and measure which share of all it finds."""
    columns = (ours if theirs is None else theirs).cpu().numpy()
    options = choose_options("ivf", {}, *columns.shape)
    vectors = build_vectors(columns, "ivf", options)
    parts = []
    for start in range(0, len(ours), BLOCK):
        queries = ours[start : start + BLOCK].cpu().numpy()
        limits, cosines, others = vectors.range_search(queries, float(np.nextafter(threshold, -2)))
        rows = start + np.repeat(np.arange(len(queries)), np.diff(limits).astype(np.int64))
        is_new = rows < others if theirs is None else np.ones(len(rows), bool)
        parts.append((rows[is_new], others[is_new].astype(np.int64), cosines[is_new]))
    found = _joined(iter(parts))

    rng = np.random.default_rng(0)
    chosen = np.sort(rng.choice(len(ours), min(NUM_MEASURED, len(ours)), replace=False))
    num_all = num_found = 0
    for row in chosen.tolist():
        similar = (ours[row : row + 1] @ (ours if theirs is None else theirs).T)[0] >= threshold
        similar[: row + 1 if theirs is None else 0] = False
        num_all += int(similar.sum())
        num_found += int((found.rows == row).sum())
    return found._replace(recall=num_found / num_all if num_all else 1.0)
