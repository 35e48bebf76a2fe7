"""What eval.py does: measure a checkpoint, or compare two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metric_learning.common.atomic import write_json
from metric_learning.common.log import versions
from metric_learning.engine.embed.embedder import embed_split, open_split
from metric_learning.engine.embed.features import open_features
from metric_learning.engine.evaluate.compare import compare_checkpoints
from metric_learning.engine.evaluate.measures import (
    check_sizes,
    log_metrics,
    log_super_classes,
    measure,
    measure_accuracy,
    score_split,
    whiten,
    write_class_table,
)
from metric_learning.engine.options.evaluation import EvaluationOptions
from metric_learning.engine.parallel.world import leave_world


def evaluate(options: EvaluationOptions) -> dict[str, Any]:
    """Measure or compare, and return the metrics with what was evaluated.

    Raises:
        ValueError: the weights do not fit, or the images or a file are wrong.
        OSError: a file cannot be read or written.
    """
    is_pair = len(options.works) > 1
    result = compare_checkpoints(options) if is_pair else evaluate_checkpoint(options)
    leave_world()
    result["evaluated"]["versions"] = versions()
    if options.json and options.works[0].machine.world.is_main:
        write_json(Path(options.json), result)
    return result


def evaluate_checkpoint(options: EvaluationOptions) -> dict[str, Any]:
    """Measure one checkpoint: `measure`, and accuracy where a class layer knows the classes."""
    work, metrics = options.works[0], options.metrics
    embedder, image_set = open_split(work)
    check_sizes(metrics, image_set)
    features = None
    if options.features:
        features = open_features(
            options.features, work, embedder.preprocessing, embedder.model, image_set
        )
    embeddings = embed_split(work, embedder, image_set, features)

    result: dict[str, Any] = {}
    if embedder.class_layer is not None:
        result = measure_accuracy(work, embedder, image_set, embeddings)
    if metrics.whiten is not None:
        embeddings = whiten(work, embedder, embeddings, metrics.whiten or None)
    scores = score_split(metrics, work.machine, image_set, embeddings)
    found = measure(metrics, work.machine, image_set, embeddings, scores)
    log_metrics(found, work.say)

    if options.class_table and work.machine.world.is_main:
        write_class_table(image_set, scores, Path(options.class_table))
    result["super_classes"] = log_super_classes(image_set, scores, work.say)
    work.say(f"End test {len(image_set)}, test_recall {found['recall@1']:.5f}")
    return found | result | {"evaluated": {"images": len(image_set), "flags": dict(work.flags)}}
