"""What infer.py does with a search index: build one of embeddings, and answer queries with it."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metric_learning.common.atomic import write_json
from metric_learning.common.log import log, versions
from metric_learning.common.outputs import prepare_output
from metric_learning.common.parameters import parse_options
from metric_learning.engine.embed.inference import Embedder, embed_index, load_embedder
from metric_learning.engine.parallel.devices import choose_amp, choose_device
from metric_learning.models import MODEL_OPTIONS
from metric_learning.models.clip_text import embed_texts
from metric_learning.models.weights.fingerprint import RANDOM, fingerprint
from metric_learning.reader import ImageSet
from metric_learning.reader.sets.plain_images import list_plain_images
from metric_learning.retrieval.index_kinds import INDEX_OPTIONS, choose_options
from metric_learning.retrieval.indexes import (
    SearchIndex,
    build_index,
    is_search_index,
    load_search_index,
    measure_recall,
)

RECALL_QUERIES, RECALL_K = 1000, 10
# What embeddings depend on beside the weights; a query has to be embedded as the index was.
EMBEDDING_FLAGS = ("model", "embedding_size", *MODEL_OPTIONS, "image_shape", "transform")


def prepare_index(args: Namespace) -> None:
    """Check before the work that --index can be written.

    Raises:
        ValueError: it cannot, or it is a file of another kind, perhaps named by mistake.
    """
    file = prepare_output("index", args.index)
    if file.exists() and not is_search_index(file):
        raise ValueError(
            f"--index={file} exists and is no search index, so it is not replaced: choose another "
            "name"
        )


def index_options(args: Namespace, num_images: int, dim: int) -> dict[str, int]:
    """Return all parameters of the index of --index_type, those of --index_options as given.

    Raises:
        ValueError: a parameter is unknown or out of range, or the images are too few.
    """
    types = dict.fromkeys(INDEX_OPTIONS[args.index_type], int)
    given = parse_options(args.index_options, types, f"--index_type={args.index_type}")
    whole = {name: int(value) for name, value in given.items()}
    return choose_options(args.index_type, whole, num_images, dim)


def build_from(
    args: Namespace,
    options: dict[str, int],
    embedder: Embedder,
    index: ImageSet,
    features: np.ndarray,
) -> SearchIndex:
    """Build the index of --index from embeddings (N, D) of the images of `index`."""
    is_labelled = bool(index.class_names)
    flags = {name: getattr(args, name) for name in EMBEDDING_FLAGS}
    return build_index(
        features,
        index.paths,
        args.index_type,
        labels=index.labels if is_labelled else (),
        class_names=index.class_names,
        metadata={
            "fingerprint": fingerprint(args.pretrained_model, args.seed),
            "weights": args.pretrained_model,
            "flags": flags | {"transform": embedder.preprocessing.transform},
            "images": args.images or f"{args.dataset}, {args.split}",
            "versions": versions(),
        },
        options=options,
    )


def embed(
    args: Namespace, embedder: Embedder, images: ImageSet, device: torch.device
) -> np.ndarray:
    """Embed the images: (N, D) float32."""
    return embed_index(
        embedder.model,
        images,
        embedder.preprocessing,
        batch_size=args.batch_size,
        num_workers=min(args.num_workers, len(images) // args.batch_size),
        device=device,
        amp_dtype=choose_amp(args.amp, device),
    )


def describe_recall(search_index: SearchIndex, features: np.ndarray, device: torch.device) -> str:
    """Measure how much of the exact neighbours an approximate index finds, for the log."""
    k = min(RECALL_K, len(features) - 1)
    if k < 1:
        return "recall cannot be measured on one image"
    rng = np.random.default_rng(0)
    rows = np.sort(rng.choice(len(features), min(RECALL_QUERIES, len(features)), replace=False))
    recall = measure_recall(search_index, features[rows], k, features, rows, device)
    return f"finds {recall:.4f} of the exact {k} nearest, measured with {len(rows)} of its images"


def open_index(args: Namespace, given: set[str]) -> SearchIndex:
    """Load the index of --index and set the flags of the embedding to those it was built with.

    Args:
        args: flags; those of EMBEDDING_FLAGS become the index's.
        given: names of the flags that the user gave; those of EMBEDDING_FLAGS are added, so that
            a checkpoint does not change them again.

    Raises:
        ValueError: the file is no index, it was made with other weights or other flags, or it
            holds fewer images than --topk.
        OSError: a file cannot be read.
    """
    search_index = load_search_index(args.index)
    if args.topk > len(search_index):
        raise ValueError(
            f"--topk={args.topk}, but {args.index} holds {len(search_index)} images: lower --topk"
        )
    made = search_index.metadata
    if args.pretrained_model is not None:  # load_embedder says what to do where it is
        own = fingerprint(args.pretrained_model, args.seed)
        if own != made.get("fingerprint"):
            raise ValueError(
                f"{args.index} was built with other weights ({made.get('weights', 'unknown ones')})"
                f" than --pretrained_model={args.pretrained_model}: give those, or build the index "
                "again"
            )
    flags = made.get("flags", {})
    for name, value in (MODEL_OPTIONS | flags if flags else {}).items():
        value = tuple(value) if isinstance(value, list) else value
        if name in given and getattr(args, name) != value:
            raise ValueError(f"{args.index} was built with another --{name}: leave the flag out")
        setattr(args, name, value)
        given.add(name)
    return search_index


def search(args: Namespace, given: set[str]) -> list[dict[str, Any]]:
    """Print the neighbours of the images of --query or the texts of --query_text and return them.

    Returns:
        Per query its `path` or `text`, and `neighbours`, see `find_neighbours`.

    Raises:
        ValueError: the index does not fit the weights, or see `load_embedder` and `embed_texts`.
        OSError: a file cannot be read or written.
    """
    file = prepare_output("json", args.json) if args.json else None
    images = list_plain_images(args.query) if args.query else None
    search_index = open_index(args, given)
    device = choose_device(args, log)
    queries: list[dict[str, Any]]
    if images is not None:
        queries = [{"path": path} for path in images.paths]
        features = embed(args, load_embedder(args, given, device), images, device)
    else:
        queries = [{"text": text} for text in args.query_text]
        features = embed_query_texts(args, device)
    neighbours = find_neighbours(search_index, features, args.topk, device)
    answers = [
        query | {"neighbours": found} for query, found in zip(queries, neighbours, strict=True)
    ]
    print_answers(answers)
    if file is not None:
        write_answers(file, answers, args)
    return answers


def embed_query_texts(args: Namespace, device: torch.device) -> np.ndarray:
    """Embed the texts of --query_text by the text tower beside the image tower of the index.

    Returns:
        (Q, D) float32.

    Raises:
        ValueError: no weights were named, or see `embed_texts`.
    """
    if args.pretrained_model in (None, RANDOM):
        raise ValueError(
            "expected --pretrained_model=FILE, weights of both towers of the CLIP model that "
            "--index was built with"
        )
    return embed_texts(args.model, args.pretrained_model, args.query_text, device)


def find_neighbours(
    search_index: SearchIndex, features: np.ndarray, k: int, device: torch.device
) -> list[list[dict[str, Any]]]:
    """Find the nearest images of an index.

    Args:
        search_index: what is searched.
        features: (Q, D) float embeddings of the queries.
        k: neighbours per query.
        device: where the search computes.

    Returns:
        Per query its neighbours, each with `rank` (from 1), `row` in the index, `cosine`, `path`
        and `class_name` (None where it is not known).
    """
    rows, cosines = search_index.search(features, k, device)
    return [
        [
            {
                "rank": n + 1,
                "row": int(row),
                "cosine": float(cosine),
                "path": search_index.paths[row],
                "class_name": search_index.class_name(int(row)),
            }
            for n, (row, cosine) in enumerate(zip(found, similar, strict=True))
        ]
        for found, similar in zip(rows, cosines, strict=True)
    ]


def print_answers(answers: Sequence[dict[str, Any]]) -> None:
    """Print a line per query, and below it a line per neighbour: rank, cosine, path, class."""
    for answer in answers:
        print(f"query {answer.get('text') or answer['path']}")
        for found in answer["neighbours"]:
            name = "" if found["class_name"] is None else f"  {found['class_name']}"
            print(f"{found['rank']:>4}  {found['cosine']:7.4f}  {found['path']}{name}")


def write_answers(file: Path, answers: Sequence[dict[str, Any]], args: Namespace) -> None:
    """Write the answers as JSON, with the index and weights that gave them."""
    asked = {"index": args.index, "weights": args.pretrained_model, "versions": versions()}
    write_json(file, {"queries": list(answers), **asked})
