"""Evaluate a checkpoint: Recall@K and the other retrieval metrics of a data set.

python eval.py --pretrained_model=output/ResNet50_eml/best.pt

With --compare, test whether a second checkpoint beats the first on the same images:

python eval.py --compare output/ResNet50_eml/best.pt output/ResNet50_triplet/best.pt
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metric_learning.common.atomic import write_json
from metric_learning.common.cli import user_errors
from metric_learning.common.flags import Flag, parse_flags, path, positive
from metric_learning.common.log import log, versions
from metric_learning.common.outputs import prepare_output
from metric_learning.engine.embed.features import open_features
from metric_learning.engine.embed.inference import Job, embed_split, open_split, refuse_flags
from metric_learning.engine.evaluate.compare import compare_checkpoints
from metric_learning.engine.evaluate.evaluation import (
    check_sizes,
    log_metrics,
    log_super_classes,
    measure,
    measure_accuracy,
    score_split,
    whiten,
    write_class_table,
)
from metric_learning.engine.options.flags import (
    CLASS_FLAGS,
    DATA_FLAGS,
    MACHINE_FLAGS,
    METRIC_FLAGS,
    MODEL_FLAGS,
    with_defaults,
)
from metric_learning.engine.parallel.devices import choose_device
from metric_learning.engine.parallel.distributed import join_world, leave_world
from metric_learning.retrieval.rerank import parse_rerank

FLAGS = (
    *MODEL_FLAGS,
    *CLASS_FLAGS,
    Flag("compare", path, None, "two checkpoints: does the second beat the first?", num_values=2),
    Flag("batch_size", positive, 10, "images per batch"),
    Flag("split", str, "test", "images to evaluate", ("test", "train")),
    *METRIC_FLAGS,
    Flag("features", path, None, "FILE.npy to keep the features in, reused where it holds them"),
    Flag("json", path, None, "file to write the metrics to"),
    Flag("display_iter_step", positive, 10, "batches between log lines"),
    *DATA_FLAGS,
    *with_defaults(MACHINE_FLAGS, amp="off"),
)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Evaluate and return the metrics with what was evaluated."""
    with user_errors():
        args, given = parse_flags(__doc__, FLAGS, argv)
        check_flags(args, given)
        world = join_world()
        say = log if world.is_main else lambda line: None
        device = choose_device(args, say, world)
        job = Job(args, given, device, world, say)
        result = compare_checkpoints(job) if args.compare else evaluate_checkpoint(job)
        leave_world()
        result["evaluated"]["versions"] = versions()
        if args.json and world.is_main:
            write_json(Path(args.json), result)
        return result


def check_flags(args: Namespace, given: set[str]) -> None:
    """Raise ValueError where a flag is wrong or nothing would use it."""
    if args.split == "train":
        refuse_flags(given, ("test_classes", "test_list"), "with --split=train")
    elif args.whiten is None:
        refuse_flags(given, ("train_classes", "train_list"), "with --split=test")
    if args.compare:
        alone = ("pretrained_model", "features", "verification", "clustering", "class_table")
        refuse_flags(given, (*alone, "class_dim"), "with --compare")
    if args.rerank is not None:
        parse_rerank(args.rerank)
    for name in ("json", "class_table"):
        if getattr(args, name):
            prepare_output(name, getattr(args, name))


def evaluate_checkpoint(job: Job) -> dict[str, Any]:
    """Evaluate --pretrained_model."""
    args = job.args
    embedder, index = open_split(job)
    check_sizes(job, index)
    file = open_features(job, embedder, index) if args.features else None
    embeddings = embed_split(job, embedder, index, file)
    result: dict[str, Any] = {}
    if embedder.class_layer is not None:
        result = measure_accuracy(job, embedder, index, embeddings)
    if args.whiten is not None:
        embeddings = whiten(job, embedder, embeddings)
    scores = score_split(job, index, embeddings)
    metrics = measure(job, index, embeddings, scores)
    log_metrics(metrics, job.say)
    if job.world.is_main and args.class_table:
        write_class_table(index, scores, Path(args.class_table))
    result["super_classes"] = log_super_classes(index, scores, job.say)
    job.say(f"End test {len(index)}, test_recall {metrics['recall@1']:.5f}")
    return metrics | result | {"evaluated": {"images": len(index), "flags": vars(args)}}


if __name__ == "__main__":
    main()
