"""Evaluate a checkpoint: Recall@K and the other retrieval metrics of a data set.

python eval.py --pretrained_model=output/ResNet50_eml/best.pt

With --compare, test whether a second checkpoint beats the first on the same images:

python eval.py --compare output/ResNet50_eml/best.pt output/ResNet50_triplet/best.pt
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from engine.classification import class_numbers, classify
from engine.cli import user_errors
from engine.compare import compare_checkpoints
from engine.devices import choose_device
from engine.distributed import World, join_world, leave_world
from engine.evaluation import (
    METRIC_FLAGS,
    embed_split,
    log_metrics,
    log_tables,
    measure,
    score_index,
    whiten,
)
from engine.features import open_features
from engine.files import prepare_output
from engine.flags import DATA_FLAGS, MACHINE_FLAGS, MODEL_FLAGS, with_defaults
from engine.inference import load_embedder, load_split, refuse_flags
from engine.parsing import Flag, parse_flags, path, positive
from engine.run import log, versions
from models.atomic import write_atomically
from retrieval.rerank import parse_rerank

FLAGS = (
    *MODEL_FLAGS,
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
        world = join_world(args.use_gpu and args.device != "cpu" and torch.cuda.is_available())
        say = log if world.is_main else lambda line: None
        try:
            device = choose_device(args, say, world.local_rank)
            run = compare_checkpoints if args.compare else evaluate_checkpoint
            result = run(args, given, device, world, say)
        finally:
            leave_world()
        result["evaluated"] |= {"flags": vars(args), "versions": versions()}
        if args.json and world.is_main:
            text = json.dumps(result, indent=2) + "\n"
            write_atomically(Path(args.json), lambda file: file.write_text(text, encoding="utf-8"))
        return result


def check_flags(args: Namespace, given: set[str]) -> None:
    """Raise ValueError where a flag is wrong or nothing would use it."""
    if args.split == "train":
        refuse_flags(given, ("test_classes", "test_list"), "with --split=train")
    elif args.whiten is None:
        refuse_flags(given, ("train_classes", "train_list"), "with --split=test")
    if args.compare:
        alone = ("pretrained_model", "features", "verification", "clustering", "class_table")
        refuse_flags(given, alone, "with --compare")
    if args.rerank is not None:
        parse_rerank(args.rerank)
    for name in ("json", "class_table"):
        if getattr(args, name):
            prepare_output(name, getattr(args, name))


def evaluate_checkpoint(
    args: Namespace,
    given: set[str],
    device: torch.device,
    world: World,
    say: Callable[[str], object],
) -> dict[str, Any]:
    """Evaluate --pretrained_model."""
    embedder = load_embedder(args, given, device)
    say(embedder.source)
    index = load_split(args, args.split)
    say(f"{args.split}: {args.dataset}, {len(index)} images of {index.num_classes} classes")
    file = open_features(args, embedder, index) if args.features else None
    embeddings = embed_split(args, embedder, index, device, world, say, file)
    result: dict[str, Any] = {}
    numbers = class_numbers(args, embedder, index)
    if numbers is not None:
        result = classify(
            embedder.class_layer, embeddings, numbers, args.batch_size, say, args.display_iter_step
        )
        say(", ".join(f"{name} {value:.5f}" for name, value in result.items()))
    if args.whiten is not None:
        embeddings = whiten(args, embedder, embeddings, device, world, say)
    scores = score_index(
        index,
        embeddings,
        device,
        args.ks,
        precision_ks=args.precision_ks,
        ties=args.ties,
        rerank=args.rerank,
        world=world,
    )
    metrics = measure(index, embeddings, scores, args, device, world)
    log_metrics(metrics, say)
    if world.is_main:
        result["super_classes"] = log_tables(index, scores, args.class_table, say)
    say(f"End test {len(index)}, test_recall {metrics['recall@1']:.5f}")
    return metrics | result | {"evaluated": {"images": len(index)}}


if __name__ == "__main__":
    main()
