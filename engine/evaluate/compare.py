"""Whether one checkpoint beats another on the same images."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from typing import Any

import numpy as np

from metric_learning.engine.embed.inference import DATA_SET_FLAGS, Job, embed_split, open_split
from metric_learning.engine.evaluate.evaluation import check_sizes, score_split, whiten
from metric_learning.reader import ImageSet
from metric_learning.retrieval.metrics import summarise
from metric_learning.retrieval.scores import QueryScores
from metric_learning.retrieval.significance import compare_paired

SHOWN = 10  # flipped queries that are logged; --json has them all


def compare_checkpoints(job: Job) -> dict[str, Any]:
    """Evaluate the checkpoints of --compare on the data of the first, and test the difference.

    Returns:
        `first` and `second`, the metrics of each; `difference` of Recall@1, second - first, with
        its 95 % `interval` over classes; `p_value` by sign flips over classes; `p_mcnemar`; the
        images of the queries that `improved` and `worsened`; what was `evaluated`.

    Raises:
        ValueError: the images are of one class, or see `load_embedder`.
    """
    jobs = [
        replace(job, args=Namespace(**vars(job.args) | {"pretrained_model": file}), given=given)
        for file, given in zip(job.args.compare, (set(job.given), set(job.given)), strict=True)
    ]
    index, first = _score(jobs[0])
    for name in ("dataset", *DATA_SET_FLAGS):
        setattr(jobs[1].args, name, getattr(jobs[0].args, name))
        jobs[1].given.add(name)
    _, second = _score(jobs[1])
    found = compare_paired(
        first.columns["recall@1"], second.columns["recall@1"], first.labels, seed=job.args.seed
    )
    asking = np.flatnonzero(index.is_query)[first.rows]
    flipped = {
        name: [index.paths[asking[query]] for query in queries]
        for name, queries in (("improved", found.improved), ("worsened", found.worsened))
    }
    job.say(
        f"recall@1 {found.difference:+.5f} for the second, 95 % interval over classes "
        f"{found.low:+.5f} .. {found.high:+.5f}, p = {found.p_permutation:.4g} (sign flips over "
        "classes)"
    )
    if found.p_mcnemar is not None:
        job.say(f"p = {found.p_mcnemar:.4g} if queries were independent (McNemar)")
    for name, change in (("improved", "wrong -> right"), ("worsened", "right -> wrong")):
        paths = flipped[name]
        job.say(
            f"{len(paths)} queries {change}" + (", some of them:" if len(paths) > SHOWN else "")
        )
        for path in paths[:SHOWN]:
            job.say(f"  {path}")
    return {
        "first": summarise(first),
        "second": summarise(second),
        "difference": found.difference,
        "interval": [found.low, found.high],
        "p_value": found.p_permutation,
        "p_mcnemar": found.p_mcnemar,
        **flipped,
        "evaluated": {"images": len(index), "flags": [vars(job.args) for job in jobs]},
    }


def _score(job: Job) -> tuple[ImageSet, QueryScores]:
    embedder, index = open_split(job)
    check_sizes(job, index)
    embeddings = embed_split(job, embedder, index)
    if job.args.whiten is not None:
        embeddings = whiten(job, embedder, embeddings)
    scores = score_split(job, index, embeddings)
    job.say(f"{job.args.pretrained_model}: recall@1 {scores.columns['recall@1'].mean():.5f}")
    return index, scores
