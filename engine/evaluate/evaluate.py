"""What eval.py does: measure a checkpoint, or compare two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metric_learning.common.atomic import write_json
from metric_learning.common.log import versions
from metric_learning.engine.embed.embedder import open_split
from metric_learning.engine.evaluate import measures
from metric_learning.engine.evaluate.compare import compare_checkpoints
from metric_learning.engine.evaluate.embeddings import find_embeddings
from metric_learning.engine.options.evaluation import (
    EmbeddingOptions,
    EvaluationOptions,
    MetricOptions,
)
from metric_learning.engine.parallel.world import leave_world
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
    embeddings, origin = find_embeddings(
        embedder,
        image_set,
        features,
        needs_lengths=embedder.class_layer is not None or not metrics.compares_directions,
        verify=verify,
        is_kept=is_kept,
    )

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
