"""What an evaluation computes of the embeddings of a split, and how it says so."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from metric_learning.engine.embed.inference import Embedder, Job, embed_split, load_split
from metric_learning.engine.evaluate.classification import class_numbers, classify
from metric_learning.engine.evaluate.scoring import by_role, score_index, with_float64
from metric_learning.engine.parallel.distributed import share_of
from metric_learning.reader import ImageSet
from metric_learning.retrieval.clustering import cluster_scores
from metric_learning.retrieval.metrics import summarise
from metric_learning.retrieval.rerank import parse_rerank
from metric_learning.retrieval.scores import QueryScores
from metric_learning.retrieval.significance import bootstrap_interval
from metric_learning.retrieval.tables import class_table, format_table, super_class_table, write_csv
from metric_learning.retrieval.verification import verification_scores
from metric_learning.retrieval.whitening import fit_whitening


def check_sizes(job: Job, index: ImageSet) -> None:
    """Raise ValueError, before the work, where a flag asks for more than the gallery holds."""
    if job.args.verification and index.num_classes < 2:
        raise ValueError("--verification needs images of two classes, found one: leave it out")
    gallery_size = int(index.is_gallery.sum())
    for name in ("ks", "precision_ks"):
        largest = max(getattr(job.args, name), default=1)
        if largest > gallery_size:
            raise ValueError(
                f"--{name}={largest}: the gallery holds {gallery_size} images, give 1 to "
                f"{gallery_size}"
            )


def whiten(job: Job, embedder: Embedder, embeddings: np.ndarray) -> np.ndarray:
    """Whiten embeddings (N, D) by what the training split teaches, to --whiten dimensions."""
    train = load_split(job.args, "train")
    job.say(f"whitening is learned on {len(train)} training images")
    learned = fit_whitening(embed_split(job, embedder, train), job.args.whiten or None)
    whitened = learned.apply(embeddings)
    job.say(f"whitened from {embeddings.shape[1]} to {whitened.shape[1]} dimensions")
    return whitened


def score_split(job: Job, index: ImageSet, embeddings: np.ndarray) -> QueryScores:
    """Score the queries of an index as the flags say."""
    args = job.args
    return score_index(
        index,
        embeddings,
        job.device,
        args.ks,
        precision_ks=args.precision_ks,
        ties=args.ties,
        rerank=None if args.rerank is None else parse_rerank(args.rerank),
        world=job.world,
    )


def measure(
    job: Job, index: ImageSet, embeddings: np.ndarray, scores: QueryScores
) -> dict[str, Any]:
    """Average the scores, and compute what else the flags ask for.

    Returns:
        The dict of `retrieval.evaluate`, with `recall@1_interval` (95 %, resampling classes) where
        there are two classes, and the results of --verification and --clustering.
    """
    metrics: dict[str, Any] = summarise(scores)
    if len(np.unique(scores.labels)) > 1:
        low, high = bootstrap_interval(
            scores.columns["recall@1"], scores.labels, seed=job.args.seed
        )
        metrics["recall@1_interval"] = [low, high]
    if job.args.verification:
        share = share_of(job.world, job.device)
        sets = by_role(index, embeddings)
        metrics |= verification_scores(**sets, device=with_float64(job.device), share=share)
    if job.args.clustering and job.world.is_main:
        metrics |= cluster_scores(embeddings, index.labels, seed=job.args.seed)
    return metrics


def log_metrics(metrics: dict[str, Any], say: Callable[[str], object]) -> None:
    """Log what was measured, a line per kind."""

    def say_all(names: Iterable[str]) -> None:
        found = [f"{name} {metrics[name]:.5f}" for name in names if name in metrics]
        if found:
            say(", ".join(found))

    per_k = re.compile(r"(recall|precision)@\d+")
    say_all(name for name in metrics if per_k.fullmatch(name))
    if "recall@1_interval" in metrics:
        low, high = metrics["recall@1_interval"]
        say(f"recall@1 95 % interval over classes {low:.5f} .. {high:.5f}")
    say_all(("map@r", "r_precision", "map", "mrr", "minp"))
    say(f"queries {metrics['queries']}, without a positive {metrics['queries_without_positive']}")
    say_all(("auc", "eer", *(name for name in metrics if name.startswith("tar@"))))
    say_all(("nmi", "ami", "ari", "f1"))


def measure_accuracy(
    job: Job, embedder: Embedder, index: ImageSet, embeddings: np.ndarray
) -> dict[str, float]:
    """Measure and log what the class layer says of the images, see `classify`.

    Returns:
        Nothing where it does not know their classes.
    """
    layer = embedder.class_layer
    numbers = class_numbers(index, len(layer.weight), embedder.meta.get("class_names"))
    args = job.args
    if numbers is None:
        if args.class_dim:
            job.say("no accuracy: the class layer does not know the classes of these images")
        return {}
    if "class_names" not in embedder.meta:
        first, last = numbers.min(), numbers.max()
        names = index.class_names
        job.say(
            f"classes of the classifier by number, taken to be those of {index.name}: {first} is "
            f"{names[first]}, {last} is {names[last]}"
        )
    found = classify(layer, embeddings, numbers, args.batch_size, job.say, args.display_iter_step)
    job.say(", ".join(f"{name} {value:.5f}" for name, value in found.items()))
    return found


def write_class_table(index: ImageSet, scores: QueryScores, file: Path) -> None:
    """Write the scores of each class as CSV."""
    labels = index.labels[index.is_query]
    write_csv(class_table(scores, index.class_names, index.super_classes, labels), file)


def log_super_classes(
    index: ImageSet, scores: QueryScores, say: Callable[[str], object]
) -> list[dict[str, Any]]:
    """Log a table of the super classes where there are several, and return its rows."""
    if not index.super_classes or len(set(index.super_classes.values())) < 2:
        return []
    rows = super_class_table(scores, index.super_classes)
    for line in format_table(rows, limit=None).splitlines():
        say(line)
    return [row.cells() for row in rows]
