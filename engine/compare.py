"""Whether one checkpoint beats another on the same images."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from engine.distributed import World
from engine.evaluation import embed_split, score_index, whiten
from engine.inference import DATA_SET_FLAGS, load_embedder, load_split
from reader import Index
from retrieval.metrics import summarise
from retrieval.scores import QueryScores
from retrieval.significance import compare_paired

SHOWN = 10  # flipped queries that are logged; --json has them all


def compare_checkpoints(
    args: Namespace,
    given: set[str],
    device: torch.device,
    world: World,
    say: Callable[[str], object],
) -> dict[str, Any]:
    """Evaluate the checkpoints of --compare on the data of the first, and test the difference.

    Returns:
        `first` and `second`, the metrics of each; `difference` of Recall@1, second - first, with
        its 95 % `interval` over classes; `p_value` by sign flips over classes; `p_mcnemar`; the
        images of the queries that `improved` and `worsened`.

    Raises:
        ValueError: the images are of one class, or see `load_embedder`.
    """
    first_args = Namespace(**vars(args) | {"pretrained_model": args.compare[0]})
    index, first = _score(first_args, set(given), device, world, say)
    data = {name: getattr(first_args, name) for name in ("dataset", *DATA_SET_FLAGS)}
    second_args = Namespace(**vars(args) | {"pretrained_model": args.compare[1]} | data)
    _, second = _score(second_args, given | set(data), device, world, say)
    found = compare_paired(first.columns["recall@1"], second.columns["recall@1"], first.labels)
    asking = np.flatnonzero(index.is_query)[first.rows]
    flipped = {
        name: [index.paths[asking[query]] for query in queries]
        for name, queries in (("improved", found.improved), ("worsened", found.worsened))
    }
    say(
        f"recall@1 {found.difference:+.5f} for the second, 95 % interval over classes "
        f"{found.low:+.5f} .. {found.high:+.5f}, p = {found.p_permutation:.4g} (sign flips over "
        f"classes), p = {found.p_mcnemar:.4g} (McNemar, queries taken for independent)"
    )
    for name, change in (("improved", "wrong -> right"), ("worsened", "right -> wrong")):
        paths = flipped[name]
        say(f"{len(paths)} queries {change}" + (", some of them:" if len(paths) > SHOWN else ""))
        for path in paths[:SHOWN]:
            say(f"  {path}")
    return {
        "first": summarise(first),
        "second": summarise(second),
        "difference": found.difference,
        "interval": [found.low, found.high],
        "p_value": found.p_permutation,
        "p_mcnemar": found.p_mcnemar,
        **flipped,
        "evaluated": {"images": len(index)},
    }


def _score(
    args: Namespace,
    given: set[str],
    device: torch.device,
    world: World,
    say: Callable[[str], object],
) -> tuple[Index, QueryScores]:
    embedder = load_embedder(args, given, device)
    say(embedder.source)
    index = load_split(args, args.split)
    say(f"{args.split}: {args.dataset}, {len(index)} images of {index.num_classes} classes")
    embeddings = embed_split(args, embedder, index, device, world, say)
    if args.whiten is not None:
        embeddings = whiten(args, embedder, embeddings, device, world, say)
    scores = score_index(index, embeddings, device, args.ks, rerank=args.rerank, world=world)
    say(f"{args.pretrained_model}: recall@1 {scores.columns['recall@1'].mean():.5f}")
    return index, scores
