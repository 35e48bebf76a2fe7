"""What infer.py does with a search index: build one of embeddings, and answer queries with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metric_learning.common.atomic import write_json
from metric_learning.common.log import log, versions
from metric_learning.common.outputs import prepare_output
from metric_learning.common.parameters import parse_options
from metric_learning.engine.embed.embedder import Embedder, embed_split, load_embedder
from metric_learning.engine.options.evaluation import EMBEDDING_NAMES, InferenceOptions
from metric_learning.models.clip_text import embed_texts
from metric_learning.models.weights.fingerprint import fingerprint
from metric_learning.reader import ImageSet
from metric_learning.reader.sets.plain_images import list_plain_images
from metric_learning.retrieval.index_kinds import INDEX_OPTIONS, choose_options
from metric_learning.retrieval.indexes import (
    SearchIndex,
    build_index,
    is_search_index,
    measure_recall,
)

RECALL_QUERIES, RECALL_K = 1000, 10


def prepare_index(file: str) -> None:
    """Check before the work that --index can be written.

    Raises:
        ValueError: it cannot, or it is a file of another kind, perhaps named by mistake.
    """
    path = prepare_output("index", file)
    if path.exists() and not is_search_index(path):
        raise ValueError(
            f"--index={path} exists and is no search index, so it is not replaced: choose another "
            "name"
        )


def make_index(
    file: str, options: InferenceOptions, embedder: Embedder, image_set: ImageSet
) -> Path:
    """Embed images, build the search index of them, and return its file."""
    kind = options.index_type
    parameters = index_parameters(
        kind, options.index_options, len(image_set), embedder.model.embedding_size
    )
    features = embed_split(options.work, embedder, image_set)
    search_index = index_of(features, options, image_set, parameters)
    search_index.save(file)

    shown = "".join(f", {name} {value}" for name, value in parameters.items())
    log(f"{kind} index of {len(search_index)} images in {file}{shown}")
    if kind != "exact":
        log(describe_recall(search_index, features, options.work.machine.device))
    return Path(file)


def index_parameters(kind: str, text: str, num_images: int, dim: int) -> dict[str, int]:
    """Return all parameters of an index of some kind, those of --index_options as given.

    Raises:
        ValueError: a parameter is unknown or out of range, or the images are too few.
    """
    given = parse_options(text, dict.fromkeys(INDEX_OPTIONS[kind], int), f"--index_type={kind}")
    whole = {name: int(value) for name, value in given.items()}
    return choose_options(kind, whole, num_images, dim)


def index_of(
    features: np.ndarray,
    options: InferenceOptions,
    image_set: ImageSet,
    parameters: dict[str, int],
) -> SearchIndex:
    """Build an index of embeddings (N, D) of images."""
    work = options.work
    return build_index(
        features,
        image_set.paths,
        options.index_type,
        labels=image_set.labels if image_set.class_names else (),
        class_names=image_set.class_names,
        metadata={
            "fingerprint": fingerprint(work.weights, work.machine.seed),
            "weights": work.weights,
            "flags": {name: work.flags[name] for name in EMBEDDING_NAMES},
            "images": options.images or f"{work.data.dataset}, {work.split}",
            "versions": versions(),
        },
        options=parameters,
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


def search(options: InferenceOptions) -> list[dict[str, Any]]:
    """Print the neighbours of the images of --query or the texts of --query_text and return them.

    Returns:
        Per query its `path` or `text`, and `neighbours`, see `find_neighbours`.

    Raises:
        ValueError: the weights do not fit, or see `load_embedder` and `embed_texts`.
        OSError: a file cannot be read or written.
    """
    work, device = options.work, options.work.machine.device
    file = prepare_output("json", options.json) if options.json else None
    queries: list[dict[str, Any]]
    if options.query:
        images = list_plain_images(options.query)
        queries = [{"path": path} for path in images.paths]
        features = embed_split(work, load_embedder(work), images)
    else:
        queries = [{"text": text} for text in options.query_text]
        features = embed_texts(work.model.model, work.weights, options.query_text, device)

    assert options.search_index is not None
    neighbours = find_neighbours(options.search_index, features, options.topk, device)
    answers = [
        query | {"neighbours": found} for query, found in zip(queries, neighbours, strict=True)
    ]
    print_answers(answers)
    if file is not None:
        asked = {"index": options.index, "weights": work.weights, "versions": versions()}
        write_json(file, {"queries": answers, **asked})
    return answers


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
