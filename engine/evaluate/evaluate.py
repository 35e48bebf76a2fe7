"""What eval.py does: measure a checkpoint, or compare two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from metric_learning.common.atomic import write_json
from metric_learning.common.log import versions
from metric_learning.engine.embed.dump.given import take_whole_features
from metric_learning.engine.embed.embedder import Embedder, open_features, open_split
from metric_learning.engine.evaluate import measures
from metric_learning.engine.evaluate.compare import compare_checkpoints
from metric_learning.engine.evaluate.origin import describe_origin
from metric_learning.engine.options.evaluation import (
    EmbeddingOptions,
    EvaluationOptions,
    MetricOptions,
)
from metric_learning.engine.parallel.world import leave_world
from metric_learning.reader import ImageSet
from metric_learning.retrieval.tables import class_table, write_table


def evaluate(options: EvaluationOptions) -> dict[str, Any]:
    """Measure or compare, and return the metrics with what was evaluated."""
    works, metrics = options.works, options.metrics
    is_kept = options.json is not None
    if len(works) > 1:
        result = compare_checkpoints(works, metrics, is_kept, options.dumps)
    else:
        result = evaluate_checkpoint(
            works[0],
            metrics,
            options.features,
            options.class_table,
            verify=options.verify,
            is_kept=is_kept,
        )

    result["evaluated"]["versions"] = versions()
    if options.json and works[0].machine.world.is_main:
        write_json(Path(options.json), result)
    leave_world(works[0].machine.world)
    return result


def evaluate_checkpoint(
    work: EmbeddingOptions,
    metrics: MetricOptions,
    features: str | None = None,
    table: str | None = None,
    *,
    verify: bool = False,
    is_kept: bool = False,
) -> dict[str, Any]:
    """Measure one checkpoint: `measure`, and accuracy where a class layer knows the classes.

    The features are kept in the file `features`, compared with every image to `verify`, or read
    from the dump in a folder of that name; the scores of each class are kept in the CSV file
    `table`. A result that is to be kept says what it depends on.
    """
    embedder, image_set = open_split(work)
    measures.check_sizes(metrics, image_set)
    measures.warn_of_images(metrics, work, image_set)
    measures.warn_of_weights(embedder)
    measures.say_distance(metrics, work.say)
    embeddings, origin = _embed(embedder, image_set, metrics, features, verify, is_kept)

    result: dict[str, Any] = {}
    if embedder.class_layer is not None:
        result = measures.measure_accuracy(embedder, image_set, embeddings)
    if metrics.whiten is not None:
        embeddings = measures.whiten(embedder, embeddings, metrics.whiten or None)
    scores = measures.score_split(metrics, work.machine, image_set, embeddings)
    found = measures.measure(metrics, work.machine, image_set, embeddings, scores)
    measures.log_metrics(found, scores, work.say)

    if table and work.machine.world.is_main:
        labels = image_set.labels[image_set.is_query]
        rows = class_table(scores, image_set.class_names, image_set.super_classes, labels)
        write_table(rows, Path(table))
    result["super_classes"] = measures.log_super_classes(image_set, scores, work.say)
    work.say(f"End test {len(image_set)}, test_recall {found['recall@1']:.5f}")
    about = {"images": len(image_set), "flags": dict(work.flags), **origin}
    return found | result | {"evaluated": about}


def _embed(
    embedder: Embedder,
    image_set: ImageSet,
    metrics: MetricOptions,
    features: str | None,
    verify: bool,
    is_kept: bool,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return embeddings (N, D) float32 and, of a result that is kept, what it depends on."""
    if features is not None and Path(features).is_dir():
        needs_lengths = embedder.class_layer is not None or not metrics.compares_directions
        taken, snapshot = take_whole_features(Path(features), embedder, image_set, needs_lengths)
        return taken, describe_origin(embedder, image_set, snapshot) if is_kept else {}

    file = open_features(features, embedder, image_set, verify) if features else None
    origin = describe_origin(embedder, image_set) if is_kept and file is None else {}
    embeddings = embedder.embed(image_set, file)
    if is_kept and file is not None:
        origin = describe_origin(embedder, image_set, file.snapshot)
    return embeddings, origin
