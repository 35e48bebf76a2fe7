"""What an evaluation computes of the embeddings of a split, and how it says so."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine.devices import choose_amp
from engine.distributed import World, share_of
from engine.features import FeatureFile
from engine.inference import Embedder, embed_index, load_split
from engine.parsing import Flag, boolean, integers, path, whitening
from reader import Index
from retrieval.clustering import cluster_scores
from retrieval.metrics import DEFAULT_KS, score_queries, score_similarities, summarise
from retrieval.rerank import parse_rerank, reranked_similarities
from retrieval.scores import TIES, QueryScores
from retrieval.significance import bootstrap_interval
from retrieval.tables import class_table, format_table, super_class_table, write_csv
from retrieval.verification import verification_scores
from retrieval.whitening import fit_whitening

METRIC_FLAGS = (
    Flag("ks", integers, (), "K of Recall@K beside 1,10,100,1000, e.g. 2,4,8"),
    Flag("precision_ks", integers, (), "K of precision@K, e.g. 1,5,10"),
    Flag("ties", str, "pessimistic", "how negatives that tie with a positive count", TIES),
    Flag(
        "whiten",
        whitening,
        None,
        "PCA whitening learned on the training split: dimensions to keep, or all",
    ),
    Flag(
        "rerank",
        str,
        None,
        "re-ranking of the neighbours: qe, dba or kreciprocal, with parameters such as "
        "qe:k=10,alpha=3 or kreciprocal:k1=20,k2=6,lambda=0.3",
    ),
    Flag("verification", boolean, False, "also ROC AUC, TAR at FAR and EER over all pairs"),
    Flag("clustering", boolean, False, "also NMI, AMI, ARI and F1 of k-means clusters"),
    Flag("class_table", path, None, "CSV file to write the scores of each class to"),
)


def embed_split(
    args: Namespace,
    embedder: Embedder,
    index: Index,
    device: torch.device,
    world: World,
    say: Callable[[str], object],
    features: FeatureFile | None = None,
) -> np.ndarray:
    """Embed the images of an index as the flags say, (N, D) float32 in its order."""
    return embed_index(
        embedder.model,
        index,
        embedder.preprocessing,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        device=device,
        amp_dtype=choose_amp(args.amp, device),
        world=world,
        features=features,
        log=say,
        log_every=args.display_iter_step,
    )


def whiten(
    args: Namespace,
    embedder: Embedder,
    embeddings: np.ndarray,
    device: torch.device,
    world: World,
    say: Callable[[str], object],
) -> np.ndarray:
    """Whiten embeddings (N, D) by what the training split teaches, to --whiten dimensions."""
    train = load_split(args, "train")
    say(f"whitening is learned on {len(train)} training images")
    learned = fit_whitening(
        embed_split(args, embedder, train, device, world, say), args.whiten or None
    )
    whitened = learned.apply(embeddings)
    say(f"whitened from {embeddings.shape[1]} to {whitened.shape[1]} dimensions")
    return whitened


def score_index(
    index: Index,
    embeddings: np.ndarray,
    device: torch.device,
    ks: Sequence[int] = (),
    *,
    precision_ks: Sequence[int] = (),
    ties: str = "pessimistic",
    rerank: str | None = None,
    world: World | None = None,
) -> QueryScores:
    """Score every query of an index, in self-retrieval or query against gallery.

    Args:
        index: N images with their labels and roles.
        embeddings: (N, D) float32 in the order of the index.
        device: where the similarities are computed; only the CPU and CUDA have float64.
        ks: K of Recall@K beside those of 1, 10, 100, 1000 that the gallery holds.
        precision_ks: K of precision@K.
        ties: see `retrieval.scores.score_ranks`.
        rerank: see `retrieval.rerank.parse_rerank`; None ranks by cosine.
        world: this process's place among those that share the work; all get all scores.

    Raises:
        ValueError: see `retrieval.score_queries`.
    """
    gallery_size = int(index.is_gallery.sum())
    all_ks = sorted({*ks, *(k for k in DEFAULT_KS if k == 1 or k <= gallery_size)})
    options: dict[str, Any] = {"precision_ks": precision_ks, "ties": ties}
    queries, labels = embeddings, index.labels
    gallery = gallery_labels = None
    if not index.is_self_retrieval:
        queries, labels = embeddings[index.is_query], index.labels[index.is_query]
        gallery, gallery_labels = embeddings[index.is_gallery], index.labels[index.is_gallery]
    where = device if device.type == "cuda" else torch.device("cpu")
    if rerank is not None:
        chunks = reranked_similarities(parse_rerank(rerank), queries, gallery, where)
        return score_similarities(chunks, labels, all_ks, gallery_labels=gallery_labels, **options)
    return score_queries(
        queries,
        labels,
        all_ks,
        gallery_embeddings=gallery,
        gallery_labels=gallery_labels,
        device=where,
        share=share_of(world or World(), device),
        **options,
    )


def measure(
    index: Index,
    embeddings: np.ndarray,
    scores: QueryScores,
    args: Namespace,
    device: torch.device,
    world: World,
) -> dict[str, Any]:
    """Average the scores, and compute what else the flags ask for.

    Returns:
        The dict of `retrieval.evaluate`, with `recall@1_interval` (95 %, resampling classes) where
        there are two classes, and the results of --verification and --clustering.
    """
    metrics: dict[str, Any] = summarise(scores)
    if len(np.unique(scores.labels)) > 1:
        low, high = bootstrap_interval(scores.columns["recall@1"], scores.labels)
        metrics["recall@1_interval"] = [low, high]
    if args.verification:
        roles: dict[str, Any] = {}
        queries, labels = embeddings, index.labels
        if not index.is_self_retrieval:
            queries, labels = embeddings[index.is_query], index.labels[index.is_query]
            roles["gallery_embeddings"] = embeddings[index.is_gallery]
            roles["gallery_labels"] = index.labels[index.is_gallery]
        where = device if device.type == "cuda" else torch.device("cpu")
        metrics |= verification_scores(
            queries, labels, device=where, share=share_of(world, device), **roles
        )
    if args.clustering and world.is_main:
        metrics |= cluster_scores(embeddings, index.labels, seed=args.seed)
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


def log_tables(
    index: Index, scores: QueryScores, file: str | None, say: Callable[[str], object]
) -> list[dict[str, Any]]:
    """Log a table of the super classes where there are some; write that of the classes to `file`.

    Returns:
        The rows of the super classes.
    """
    if file is not None:
        labels = index.labels[index.is_query]
        write_csv(class_table(scores, index.class_names, index.super_classes, labels), Path(file))
    if not index.super_classes or len(set(index.super_classes.values())) < 2:
        return []
    rows = super_class_table(scores, index.super_classes)
    for line in format_table(rows, limit=None).splitlines():
        say(line)
    return [row.cells() for row in rows]
