"""What the rows of a board have reached on the test classes, and which of them differ.

A figure of a row is uncertain for two reasons: other classes might have been tested, and other
seeds would have trained other networks. Differences are compared with both. The p value is the
larger one of two tests: sign flips of whole classes, see `retrieval.significance`, which assume
nothing about their scores, but know one network of each row, the mean over its seeds; and Welch's t
of the variance over classes plus that over seeds (Satterthwaite's degrees of freedom). So is the
interval the wider one. p values are corrected for the number of rows (Holm 1979, A Simple
Sequentially Rejective Multiple Test Procedure).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.stats import t as student

from metric_learning.retrieval.significance import (
    CONFIDENCE,
    MIN_CLASSES,
    class_interval,
    compare_paired,
)

METRICS = ("recall@1", "map@r")
LEVEL = 1 - CONFIDENCE


@dataclass(frozen=True, eq=False)
class Scores:
    """What the trainings of a row scored on the test.

    Attributes:
        rows: (Q,) int64, the queries.
        units: (Q,) int64, what may be drawn anew: their classes, or, of a closed set, each alone.
        values: metric -> (S, Q) float64, a row per seed.
    """

    rows: np.ndarray
    units: np.ndarray
    values: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Figure:
    """A metric of a row, as a fraction.

    Attributes:
        mean: over seeds and queries.
        deviation: of the seeds' means, with n - 1; None of one seed.
        low: lower end of the 95 % interval over test classes; None of too few.
        high: its upper end.
    """

    mean: float
    deviation: float | None
    low: float | None
    high: float | None
    by_seed: Sequence[float]


@dataclass(frozen=True)
class Contrast:
    """By how much a row is above another one.

    Attributes:
        difference: of the means, as a fraction.
        low: lower end of its 95 % interval over classes and seeds; None of too few classes.
        high: its upper end.
        p: of the one comparison.
        p_holm: corrected for all rows that are compared with the same one.
    """

    difference: float
    low: float | None
    high: float | None
    p: float
    p_holm: float = field(default=math.nan)

    @property
    def is_significant(self) -> bool:
        """Whether the rows differ, at 5 % over all comparisons of the kind."""
        return self.p_holm <= LEVEL


def figure_of(scores: Scores, metric: str) -> Figure:
    """Summarise a metric of a row."""
    values = scores.values[metric]
    by_seed = values.mean(1)
    low = high = None
    if len(np.unique(scores.units)) >= MIN_CLASSES:
        low, high = class_interval(values.mean(0), scores.units)
    deviation = float(by_seed.std(ddof=1)) if len(by_seed) > 1 else None
    return Figure(float(values.mean()), deviation, low, high, by_seed.tolist())


def contrast(first: Scores, second: Scores, metric: str) -> Contrast:
    """Compare a second row with a first one; ValueError where their queries differ."""
    if not np.array_equal(first.rows, second.rows):
        raise ValueError("rows of a board were tested on other queries: train them again")
    before, after = first.values[metric], second.values[metric]
    flips = compare_paired(before.mean(0), after.mean(0), first.units)
    error, freedom = standard_error(before, after, first.units)
    if error == 0:
        return Contrast(flips.difference, flips.low, flips.high, flips.p_permutation)

    p_t = float(2 * student.sf(abs(flips.difference) / error, freedom))
    reach = float(student.ppf(1 - LEVEL / 2, freedom)) * error
    low = high = None
    if flips.low is not None and flips.high is not None:
        low = min(flips.low, flips.difference - reach)
        high = max(flips.high, flips.difference + reach)
    return Contrast(flips.difference, low, high, max(flips.p_permutation, p_t))


def standard_error(before: np.ndarray, after: np.ndarray, units: np.ndarray) -> tuple[float, float]:
    """Standard error of the difference of two rows' means, and its degrees of freedom.

    Args:
        before: (S, Q) scores of a row, a seed each.
        after: (T, Q) of another one.
        units: (Q,) the classes, drawn as a whole (a ratio estimator: they have unequal sizes).
    """
    _, places, counts = np.unique(units, return_inverse=True, return_counts=True)
    differences = after.mean(0) - before.mean(0)
    sums = np.bincount(places, differences) - counts * differences.mean()
    number = len(counts)
    parts = [(float(sums @ sums) * number / max(number - 1, 1) / len(units) ** 2, number - 1)]
    for values in (before, after):
        if len(values) > 1:
            parts.append((float(values.mean(1).var(ddof=1)) / len(values), len(values) - 1))

    total = sum(variance for variance, _ in parts)
    if total == 0:
        return 0.0, 1.0
    freedom = total**2 / sum(variance**2 / max(n, 1) for variance, n in parts if variance)
    return math.sqrt(total), freedom


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p values for their number, by Holm's procedure; they stay in their order."""
    order = np.argsort(p_values, kind="stable")
    corrected, highest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(order.tolist()):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = highest
    return corrected
