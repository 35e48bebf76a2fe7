"""Whether one checkpoint beats another on the same images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from metric_learning.engine.embed.embedder import open_split
from metric_learning.engine.evaluate.embeddings import find_embeddings
from metric_learning.engine.evaluate.measures import (
    check_sizes,
    say_distance,
    score_split,
    warn_of_images,
    warn_of_weights,
    whiten,
)
from metric_learning.engine.evaluate.scoring import chances
from metric_learning.engine.options.evaluation import EmbeddingOptions, MetricOptions
from metric_learning.reader import ImageSet
from metric_learning.retrieval.metrics import summarise
from metric_learning.retrieval.scores import QueryScores
from metric_learning.retrieval.significance import MIN_CLASSES, PairedComparison, compare_paired

SHOWN = 10  # flipped queries that are logged; --json has them all


def compare_checkpoints(
    works: Sequence[EmbeddingOptions],
    metrics: MetricOptions,
    is_kept: bool = False,
    dumps: Sequence[str | None] = (None, None),
) -> dict[str, Any]:
    """Evaluate two checkpoints on the same images, and test the difference.

    Features are read from `dumps`, where given. A kept result says of each what it depends on.

    Returns:
        `first` and `second`, the metrics of each, with `recall@K_chance`; `difference` of Recall@1,
        second - first, with its 95 % `interval` over classes, None of fewer than 6; `p_value` by
        sign flips over classes; `p_mcnemar`; the images of the queries that `improved` and
        `worsened`; what was `evaluated`.
    """
    work = works[0]
    image_set, first, origin = _score(work, metrics, is_kept, dumps[0])
    warn_of_images(metrics, work, image_set)
    say_distance(metrics, work.say)
    _, second, other_origin = _score(works[1], metrics, is_kept, dumps[1])
    found = compare_paired(
        first.columns["recall@1"],
        second.columns["recall@1"],
        first.labels,
        seed=work.machine.seed,
    )

    asking = np.flatnonzero(image_set.is_query)[first.rows]
    flipped = {
        name: [image_set.paths[asking[query]] for query in queries]
        for name, queries in (("improved", found.improved), ("worsened", found.worsened))
    }
    chance = chances(image_set, first.columns)
    work.say(f"recall@1_chance {chance['recall@1_chance']:.5f}")
    log_comparison(work, found, flipped)
    return {
        "first": summarise(first) | chance,
        "second": summarise(second) | chance,
        "difference": found.difference,
        "interval": None if found.low is None else [found.low, found.high],
        "p_value": found.p_permutation,
        "p_mcnemar": found.p_mcnemar,
        **flipped,
        "evaluated": {
            "images": len(image_set),
            "flags": [dict(work.flags) for work in works],
            **{name: [value, other_origin[name]] for name, value in origin.items()},
        },
    }


def log_comparison(
    work: EmbeddingOptions, found: PairedComparison, flipped: dict[str, list[str]]
) -> None:
    """Log the difference, what it means, and some of the queries that flipped."""
    work.say(
        f"recall@1 {found.difference:+.5f} for the second, {interval_words(found)}, "
        f"p = {found.p_permutation:.4g} (sign flips over classes)"
    )
    if found.p_mcnemar is not None:
        work.say(f"p = {found.p_mcnemar:.4g} if queries were independent (McNemar)")
    for name, change in (("improved", "wrong -> right"), ("worsened", "right -> wrong")):
        paths = flipped[name]
        some = ", some of them:" if len(paths) > SHOWN else ""
        work.say(f"{len(paths)} queries {change}{some}")
        for path in paths[:SHOWN]:
            work.say(f"  {path}")


def before_and_after(
    before: Mapping[str, np.ndarray], after: QueryScores, seed: int
) -> tuple[list[str], dict[str, float]]:
    """Compare scores (Q,) per metric with those of a later test of the same queries.

    Returns the lines of a table and the record of Recall@1; a line alone where the queries differ.
    """
    if any(len(scores) != len(after) for scores in before.values()):
        return ["no comparison with the start: it was tested on other queries"], {}

    lines = [f"{'':10}{'before':>9}{'after':>9}  difference"]
    record: dict[str, float] = {}
    for name, scores in before.items():
        later = after.columns[name].astype(scores.dtype)  # equal scores stay equal
        found = compare_paired(scores, later, after.labels, seed=seed)
        means = float(scores.mean()), float(later.mean())
        lines.append(
            f"{name:10}{means[0]:9.5f}{means[1]:9.5f}  {found.difference:+.5f}, "
            f"{interval_words(found)}, p = {found.p_permutation:.4g}"
        )
        if name == "recall@1":
            record = {"before": means[0], "after": means[1], "difference": found.difference}
            record["p_value"] = found.p_permutation
            if found.low is not None and found.high is not None:
                record |= {"low": found.low, "high": found.high}
    return lines, record


def interval_words(found: PairedComparison) -> str:
    """Say the interval of a difference, or why there is none."""
    if found.low is None:
        return f"no interval: it takes {MIN_CLASSES} classes of queries"
    return f"95 % interval over classes {found.low:+.5f} .. {found.high:+.5f}"


def _score(
    work: EmbeddingOptions, metrics: MetricOptions, is_kept: bool, dump: str | None
) -> tuple[ImageSet, QueryScores, dict[str, Any]]:
    embedder, image_set = open_split(work)
    check_sizes(metrics, image_set)
    warn_of_weights(embedder)

    embeddings, origin = find_embeddings(
        embedder,
        image_set,
        dump,
        needs_lengths=not metrics.compares_directions,
        is_kept=is_kept,
    )
    if metrics.whiten is not None:
        embeddings = whiten(embedder, embeddings, metrics.whiten or None)
    scores = score_split(metrics, work.machine, image_set, embeddings)
    work.say(f"{work.weights}: recall@1 {scores.columns['recall@1'].mean():.5f}")
    return image_set, scores, origin
