"""The queries that one model finds and the other does not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from metric_learning.engine.report.comparison.models import Compared
from metric_learning.engine.report.data import one_per_class
from metric_learning.retrieval.significance import PairedComparison, compare_paired


@dataclass(frozen=True)
class Flips:
    """What a model does otherwise than the reference.

    Attributes:
        paired: the difference of Recall@1, model - reference.
        gained, lost: places of the queries whose first neighbour is right only with the model, or
            only with the reference; those whose first right image moved farthest come first, of as
            many classes as possible.
    """

    model: Compared
    paired: PairedComparison
    gained: np.ndarray
    lost: np.ndarray


def find_flips(reference: Compared, model: Compared, seed: int) -> Flips:
    """Compare what a model and the reference found for the same queries."""
    before, after = reference.found.scores, model.found.scores
    assert np.array_equal(reference.found.rows, model.found.rows)
    paired = compare_paired(
        before.columns["recall@1"], after.columns["recall@1"], after.labels, seed=seed
    )
    gained = _farthest_first(paired.improved, before.first_rank, after.labels)
    lost = _farthest_first(paired.worsened, after.first_rank, after.labels)
    return Flips(model, paired, gained, lost)


def _farthest_first(places: np.ndarray, ranks: np.ndarray, labels: np.ndarray) -> np.ndarray:
    ordered = places[np.argsort(-ranks[places], kind="stable")]
    return one_per_class(ordered, labels, len(ordered))
