"""What an evaluation computes of the embeddings of a split, and how it says so."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from metric_learning.engine.embed.embedder import Embedder
from metric_learning.engine.evaluate import caveats
from metric_learning.engine.evaluate.classification import class_numbers, classify
from metric_learning.engine.evaluate.open_set import (
    answer_open_set,
    choose_unknown,
    log_open_set,
    measure_open_set,
)
from metric_learning.engine.evaluate.scoring import (
    by_role,
    chances,
    check_scorable,
    score_images,
    with_float64,
)
from metric_learning.engine.options.evaluation import EmbeddingOptions, MetricOptions
from metric_learning.engine.options.parts import MachineOptions
from metric_learning.engine.parallel.collectives import share_of
from metric_learning.reader import ImageSet
from metric_learning.retrieval.clustering import cluster_scores
from metric_learning.retrieval.metrics import default_ks, summarise
from metric_learning.retrieval.rerank import check_rerank, parse_rerank
from metric_learning.retrieval.scores import QueryScores
from metric_learning.retrieval.significance import MIN_CLASSES, class_interval
from metric_learning.retrieval.tables import format_table, super_class_table
from metric_learning.retrieval.verification import verification_scores
from metric_learning.retrieval.whitening import fit_whitening


def check_sizes(metrics: MetricOptions, image_set: ImageSet, seed: int = 0) -> None:
    """Raise ValueError, before the work, where more is asked for than the gallery holds."""
    check_scorable(image_set)
    labels = image_set.labels[image_set.is_query | image_set.is_gallery]
    if metrics.verification and len(np.unique(labels)) < 2:
        raise ValueError("--verification needs images of two classes, found one: leave it out")
    if metrics.open_set:
        choose_unknown(image_set, metrics.open_set, seed)

    gallery_size = int(image_set.is_gallery.sum())
    if metrics.rerank is not None:
        sizes: tuple[int, ...] = (int(image_set.is_query.sum()),)
        if not image_set.is_self_retrieval:
            sizes += (gallery_size, int((image_set.is_query & image_set.is_gallery).sum()))
        check_rerank(parse_rerank(metrics.rerank), *sizes)
    for name in ("ks", "precision_ks"):
        largest = max(getattr(metrics, name), default=1)
        if largest > gallery_size:
            raise ValueError(
                f"--{name}={largest}: the gallery holds {gallery_size} images, give 1 to "
                f"{gallery_size}"
            )


def warn_of_images(metrics: MetricOptions, work: EmbeddingOptions, image_set: ImageSet) -> None:
    """Log what makes figures of an image set mean little, whatever the model."""
    ks = sorted({*metrics.ks, *default_ks(int(image_set.is_gallery.sum()))})
    for line in caveats.of_split(image_set, ks):
        work.say(line)


def warn_of_weights(embedder: Embedder) -> None:
    """Log where images are prepared otherwise than those that the weights were trained on."""
    work, model = embedder.work, embedder.model
    for line in caveats.other_inputs(work.model, work.meta, model.mean, model.std):
        work.say(line)


def whiten(embedder: Embedder, embeddings: np.ndarray, dim: int | None) -> np.ndarray:
    """Whiten embeddings (N, D) by what the training split teaches, to `dim` dimensions or all."""
    work = embedder.work
    train = work.data.load("train").require_whole()
    work.say(f"whitening is learned on {len(train)} training images")
    whitened = fit_whitening(embedder.embed(train), dim).apply(embeddings)
    work.say(f"whitened from {embeddings.shape[1]} to {whitened.shape[1]} dimensions")
    return whitened


def say_distance(metrics: MetricOptions, say: Callable[[str], object]) -> None:
    """Log by what images are ranked, where it is not the cosine."""
    if metrics.distance != "cosine":
        say(f"images are ranked by the {metrics.distance} distance of embeddings as they are")


def score_split(
    metrics: MetricOptions, machine: MachineOptions, image_set: ImageSet, embeddings: np.ndarray
) -> QueryScores:
    """Score the queries of an image set as the options say."""
    return score_images(
        image_set,
        embeddings,
        machine.device,
        metrics.ks,
        precision_ks=metrics.precision_ks,
        ties=metrics.ties,
        rerank=None if metrics.rerank is None else parse_rerank(metrics.rerank),
        world=machine.world,
        distance=metrics.distance,
    )


def measure(
    options: MetricOptions,
    machine: MachineOptions,
    image_set: ImageSet,
    embeddings: np.ndarray,
    scores: QueryScores,
) -> dict[str, Any]:
    """Average the scores, and compute what else the options ask for.

    Returns the dict of `retrieval.evaluate`, with `recall@K_chance` (`chance_recall`), the number
    of `query_classes`, `recall@1_interval` (`class_interval`) where there can be one, and the
    results of --verification, --clustering and --open_set.
    """
    metrics: dict[str, Any] = summarise(scores)
    metrics |= chances(image_set, metrics)
    metrics["query_classes"] = len(np.unique(scores.labels))
    if metrics["query_classes"] >= MIN_CLASSES:
        low, high = class_interval(scores.columns["recall@1"], scores.labels, seed=machine.seed)
        metrics |= {"recall@1_interval": [low, high]} if low < high else {}

    if options.verification:
        share = share_of(machine.world, machine.device)
        sets = by_role(image_set, embeddings)
        metrics |= verification_scores(**sets, device=with_float64(machine.device), share=share)
    if options.open_set and machine.world.is_main:
        drawn = options.open_set, machine.seed, machine.device
        metrics |= measure_open_set(answer_open_set(image_set, embeddings, *drawn))
    if options.clustering and machine.world.is_main:
        metrics |= cluster_scores(embeddings, image_set.labels, seed=machine.seed)
    return metrics


def log_metrics(metrics: dict[str, Any], scores: QueryScores, say: Callable[[str], object]) -> None:
    """Log what was measured of scores, a line per kind."""

    def say_all(names: Iterable[str]) -> None:
        found = [f"{name} {metrics[name]:.5f}" for name in names if name in metrics]
        if found:
            say(", ".join(found))

    per_k = re.compile(r"(recall|precision)@\d+")
    say_all(name for name in metrics if per_k.fullmatch(name))
    say_all(name for name in metrics if name.endswith("_chance"))
    if "recall@1_interval" in metrics:
        low, high = metrics["recall@1_interval"]
        say(f"recall@1 95 % interval over classes {low:.5f} .. {high:.5f}")
        for line in caveats.few_decide(scores):
            say(line)
    elif metrics["query_classes"] < MIN_CLASSES:
        found = metrics["query_classes"]
        say(
            f"recall@1 has no interval: it takes {MIN_CLASSES} classes of queries, here are {found}"
        )
    else:
        say("recall@1 has no interval: it is the same in all classes")
    say_all(("map@r", "r_precision", "map", "mrr", "minp"))
    say(f"queries {metrics['queries']}, without a positive {metrics['queries_without_positive']}")
    say_all(("auc", "eer", *(name for name in metrics if name.startswith("tar@"))))
    say_all(name for name in metrics if name.startswith("threshold@"))
    log_open_set(metrics, say)
    say_all(("nmi", "ami", "ari", "f1"))


def measure_accuracy(
    embedder: Embedder, image_set: ImageSet, embeddings: np.ndarray
) -> dict[str, float]:
    """Measure and log what the class layer says of images, see `classify`; empty if not its own."""
    work, layer = embedder.work, embedder.class_layer
    numbers = class_numbers(image_set, len(layer.weight), work.meta.get("class_names"))
    if numbers is None:
        if work.class_dim:
            work.say("no accuracy: the class layer does not know the classes of these images")
        return {}

    if "class_names" not in work.meta:
        first, last = numbers.min(), numbers.max()
        names = image_set.class_names
        work.say(
            f"classes of the classifier by number, taken to be those of {image_set.name}: {first} "
            f"is {names[first]}, {last} is {names[last]}"
        )
    every = work.display_iter_step
    found = classify(layer, embeddings, numbers, work.batch_size, work.say, every)
    work.say(", ".join(f"{name} {value:.5f}" for name, value in found.items()))
    return found


def log_super_classes(
    image_set: ImageSet, scores: QueryScores, say: Callable[[str], object]
) -> list[dict[str, Any]]:
    """Log a table of the super classes where there are several, and return its rows."""
    if not image_set.super_classes or len(set(image_set.super_classes.values())) < 2:
        return []
    rows = super_class_table(scores, image_set.super_classes)
    for line in format_table(rows, limit=None).splitlines():
        say(line)
    return [row.cells() for row in rows]
