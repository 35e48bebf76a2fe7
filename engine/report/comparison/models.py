"""The models that a page compares: those that were given, and a frozen baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metric_learning.common.names import to_line
from metric_learning.engine.evaluate.scoring import with_float64
from metric_learning.engine.options.evaluation import (
    EmbeddingOptions,
    default_flags,
    settle_embedding,
)
from metric_learning.engine.parallel.world import World
from metric_learning.engine.report.data import (
    Found,
    QueryChoice,
    RecallCurve,
    Subject,
    find,
    recall_curve,
)
from metric_learning.engine.report.subjects import of_checkpoint
from metric_learning.models import read_metadata
from metric_learning.models.weights.fingerprint import RANDOM

START, NONE = "start", "none"  # values of --baseline beside a file and RANDOM
# What weights of others lack of a model, so that it would be random.
BARE = {"embedding_size": 0, "feature_norm": "none"}


@dataclass(frozen=True)
class Compared:
    """A model of a comparison: its name, and what it found.

    `is_baseline` is for the weights that the first of the given runs began with.
    """

    name: str
    subject: Subject
    found: Found
    curve: RecallCurve
    is_baseline: bool = False


def frozen_baseline(work: EmbeddingOptions, asked: str | None) -> EmbeddingOptions | None:
    """Return the model that stands beside those of a comparison; None where there is none.

    `asked` is START for what the training of `work` began with, and what that did, until weights
    of others or random ones; RANDOM, a file or NONE. Where None, it is START, if that is there.
    Raises ValueError where weights that were asked for are not there.
    """
    weights = asked
    if asked in (None, START):
        weights = find_start(work.weights, work.meta)
        if weights != RANDOM and not Path(weights).exists():
            gone = f"{to_line(weights)}, which the training of {work.weights} began with, is gone"
            if asked is None:
                work.say(f"no frozen baseline: {gone}; --baseline=FILE names it")
                return None
            raise ValueError(f"--baseline=start: {gone}: give it as --baseline=FILE")
    if weights is None or weights in (NONE, work.weights):  # the latter began with nothing
        return None

    is_ours = weights != RANDOM and read_metadata(weights) is not None
    changed = {} if is_ours else BARE
    flags = default_flags().replaced(**{**work.flags, **changed, "pretrained_model": weights})
    return settle_embedding(flags, World())


def find_start(weights: str, meta: Mapping[str, Any]) -> str:
    """Return what the first of the trainings that led to weights began with.

    That is a file, or RANDOM; the weights themselves where nothing says that they were trained.
    """
    seen: set[str] = set()
    while weights not in seen and "flags" in meta:
        seen.add(weights)
        weights = str(meta["flags"].get("pretrained_model") or RANDOM)
        is_there = weights != RANDOM and Path(weights).exists()
        meta = (read_metadata(weights) if is_there else None) or {}
    return weights


def name_models(works: Sequence[EmbeddingOptions]) -> list[str]:
    """Name each model by its run folder or file, with as many folders as tell them apart."""
    files = [Path(work.weights) for work in works]
    parts = [
        (file.parent if file.stem in ("best", "last") else file).resolve().parts for file in files
    ]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-length:]) for each in parts]
        if len(set(names)) == len(names):
            return [to_line(name) for name in names]
    return [to_line(str(file)) for file in files]


def compare_models(
    works: Sequence[EmbeddingOptions],
    names: Sequence[str],
    baseline: EmbeddingOptions | None,
    choice: QueryChoice,
) -> list[Compared]:
    """Embed the images of the first work with each model, the baseline first, and search."""
    machine = works[0].machine
    models = [
        (name, work.of_data(works[0]), False) for name, work in zip(names, works, strict=True)
    ]
    if baseline is not None:
        what = "random weights" if baseline.weights == RANDOM else Path(baseline.weights).stem
        models.insert(0, (f"frozen {to_line(what)}", baseline.of_data(works[0]), True))

    found = []
    for name, work, is_baseline in models:
        subject = of_checkpoint(work, choice)
        searched = find(subject, with_float64(machine.device))
        curve = recall_curve(searched, machine.seed)
        found.append(Compared(name, subject, searched, curve, is_baseline))
    return found
