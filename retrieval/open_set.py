"""Queries whose class nobody in the gallery is of: how well a threshold on the cosine tells them.

Every query has the image that is most similar to it, and the cosine of that. It is given as the
answer where the cosine reaches a threshold; else the answer is "none".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from metric_learning.retrieval.verification import EXPONENTS, LEAST_ACCEPTED

NUM_HALVES = 2


@dataclass(frozen=True, eq=False)
class Answers:
    """The best images of queries whose class is in the gallery, and of others."""

    known: np.ndarray  # (K,) float, the cosine of each query's most similar image
    is_right: np.ndarray  # (K,) bool, whether that is of the query's class
    unknown: np.ndarray  # (U,) float, the same of queries whose class is not in the gallery

    def part(self, of_known: np.ndarray, of_unknown: np.ndarray) -> Answers:
        """Return those of some queries, (K,) and (U,) bool."""
        return Answers(self.known[of_known], self.is_right[of_known], self.unknown[of_unknown])


def auroc(answers: Answers) -> float:
    """Return the probability that a known query's cosine is above an unknown one's, ties half.

    The area under the curve of detected over falsely detected queries (Fawcett 2006, An
    introduction to ROC analysis, https://doi.org/10.1016/j.patrec.2005.10.010).
    """
    ascending = np.sort(answers.unknown)
    below = np.searchsorted(ascending, answers.known, side="left").sum()
    reached = np.searchsorted(ascending, answers.known, side="right").sum()
    return float((below + reached) / (2 * len(answers.known) * len(ascending)))


def detection_rates(answers: Answers) -> dict[str, float]:
    """Return `dir@far=F`: the share of known queries that are detected and rightly identified.

    The threshold is the lowest at which at most a share F of the unknown queries has an answer: the
    detection and identification rate of open-set tests (Phillips et al. 2011, Evaluation Methods in
    Face Recognition). F at which fewer than 10 unknown queries may have one are left out.
    """
    descending = np.sort(answers.unknown)[::-1]
    rates = {}
    for name, allowed in _allowed(len(descending)):
        is_detected = answers.known > descending[allowed]
        rates[f"dir@{name}"] = float((is_detected & answers.is_right).mean())
    return rates


def detection_thresholds(answers: Answers) -> dict[str, float]:
    """Return the cosines `dir_threshold@far=F` that the rates of `detection_rates` are at.

    Each is half-way between the highest cosine that has to be refused and the next higher one.
    """
    descending = np.sort(answers.unknown.astype(np.float64))[::-1]
    cosines = np.concatenate([answers.known, answers.unknown]).astype(np.float64)
    thresholds = {}
    for name, allowed in _allowed(len(descending)):
        refused = descending[allowed]
        higher = cosines[cosines > refused].min(initial=max(1.0, refused))
        threshold = max((refused + higher) / 2, np.nextafter(refused, np.inf))
        thresholds[f"dir_threshold@{name}"] = float(threshold)
    return thresholds


def _allowed(num_unknown: int) -> list[tuple[str, int]]:
    """List the rates `far=F`, and how many unknown queries may have an answer; none below 10."""
    found = [(f"far={10**-exponent}", num_unknown // 10**exponent) for exponent in EXPONENTS]
    return [(name, allowed) for name, allowed in found if allowed >= LEAST_ACCEPTED]


def best_threshold(answers: Answers) -> float:
    """Return the cosine at which F1 is greatest, see `rates_at`; half-way to the next lower one."""
    cosines = np.concatenate([answers.known, answers.unknown]).astype(np.float64)
    is_right = np.concatenate([answers.is_right, np.zeros(len(answers.unknown), bool)])
    order = np.argsort(-cosines, kind="stable")
    cosines, num_right = cosines[order], np.cumsum(is_right[order])
    num_given = np.arange(1, len(cosines) + 1)
    f1 = 2 * num_right / (num_given + len(answers.known))
    ends_a_tie = np.append(cosines[1:] < cosines[:-1], True)

    best = int(np.argmax(np.where(ends_a_tie, f1, -1.0)))
    lower = cosines[best + 1] if best + 1 < len(cosines) else cosines[best]
    return float((cosines[best] + lower) / 2)


def rates_at(answers: Answers, threshold: float) -> dict[str, float]:
    """Return what becomes of queries at a threshold, as fractions.

    `missed`: of the known ones, those without an answer; `false_answers`: of the unknown ones,
    those with one; `right`: of the known ones, those with the right one. `f1` is the harmonic mean
    of that and of the share of right answers among all that are given.
    """
    is_given = answers.known >= threshold
    num_right = int((is_given & answers.is_right).sum())
    num_false = int((answers.unknown >= threshold).sum())
    return {
        "missed": float((~is_given).mean()),
        "false_answers": num_false / len(answers.unknown),
        "right": num_right / len(is_given),
        "f1": 2 * num_right / (int(is_given.sum()) + num_false + len(is_given)),
    }


def cross_f1(answers: Answers, halves: tuple[np.ndarray, np.ndarray]) -> float | None:
    """Return F1 at thresholds that were chosen on other classes than those they are tried on.

    `halves` has the half, 0 or 1, of the classes that each known query (K,) and each unknown one
    (U,) is of. The threshold that is best for one half is tried on the other; right, false and all
    answers of both are added up. None where a half has no known or no unknown query.
    """
    num_right = num_given = 0
    for tried in range(NUM_HALVES):
        here = [half == tried for half in halves]
        if not all(part.any() and not part.all() for part in here):
            return None
        threshold = best_threshold(answers.part(*(~part for part in here)))
        part = answers.part(*here)
        is_given = part.known >= threshold
        num_right += int((is_given & part.is_right).sum())
        num_given += int(is_given.sum()) + int((part.unknown >= threshold).sum())
    return 2 * num_right / (num_given + len(answers.known))
