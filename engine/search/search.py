"""What infer.py does with a search index: build one of embeddings, and answer queries with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from metric_learning.common.atomic import write_json
from metric_learning.common.fingerprint import (
    Snapshot,
    changed_rows,
    describe_change,
    first_difference,
    take_snapshot,
)
from metric_learning.common.log import log, show, versions
from metric_learning.common.names import to_line
from metric_learning.common.outputs import json_kind, kind_of_file
from metric_learning.common.parameters import parse_options
from metric_learning.engine.embed.dump.shards import Given
from metric_learning.engine.embed.embedder import Embedder, load_embedder
from metric_learning.engine.embed.embedding import readable_rows
from metric_learning.engine.options.evaluation import EMBEDDING_NAMES, EmbeddingOptions
from metric_learning.engine.options.tables import ACCEPT, AUTO
from metric_learning.engine.options.training import VIEW_NAMES
from metric_learning.engine.parallel.collectives import gather_on_main, merge
from metric_learning.engine.search.page import write_page
from metric_learning.engine.search.threshold import (
    THRESHOLD,
    Images,
    calibrating_images,
    choose_threshold,
    mark_none,
    threshold_of,
)
from metric_learning.models.clip_text import embed_texts
from metric_learning.reader import ImageSet
from metric_learning.reader.sets.snapshots import snapshot_of
from metric_learning.retrieval import indexes
from metric_learning.retrieval.index_kinds import INDEX_OPTIONS, choose_options
from metric_learning.retrieval.milvus import MilvusIndex, is_milvus, write_milvus_index

AnyIndex = indexes.SearchIndex | MilvusIndex
RECALL_QUERIES, RECALL_K = 1000, 10
INDEX = kind_of_file("a search index", indexes.is_search_index)
ANSWERS = json_kind("a result of a search", "queries", "index", "weights")


class IndexKind(NamedTuple):
    """Which index is built: a key of INDEX_OPTIONS, and its parameters as `name=value,...`.

    The threshold is as --unknown_threshold says, see `choose_threshold`.
    """

    name: str
    options: str
    unknown_threshold: str | float | None = None

    def parameters(self, num_images: int, dim: int) -> dict[str, int]:
        """Return all parameters, those of the options as given; ValueError where one is wrong."""
        types = dict.fromkeys(INDEX_OPTIONS[self.name], int)
        given = parse_options(self.options, types, f"--index_type={self.name}")
        whole = {name: int(value) for name, value in given.items()}
        return choose_options(self.name, whole, num_images, dim)


def make_index(
    file: str,
    kind: IndexKind,
    embedder: Embedder,
    image_set: ImageSet,
    what: str,
    on_bad_image: str,
    given: Given | None = None,
) -> Path:
    """Embed images, build the search index of them, which says `what` they are; return its file.

    All processes embed, unless the features are `given`, and the first one builds.
    What `on_bad_image` or a dump leaves out, the metadata of the index tell, and its threshold.
    """
    work = embedder.work
    parameters = kind.parameters(len(image_set), embedder.model.embedding_size)
    listed, snapshot = image_set.paths, (given and given.snapshot) or snapshot_of(image_set)
    if given is None:
        rows, broken = embed_shared(embedder, image_set, on_bad_image)
    else:
        rows, broken = given.embeddings, given.broken
    tried = None if kind.unknown_threshold != AUTO else embed_calibrating(embedder)
    if not work.machine.world.is_main:
        return Path(file)
    readable = readable_rows(image_set, broken)
    features = rows[readable] if given is None else rows
    image_set = image_set.select(readable)
    if broken:  # which may be too many for what was chosen
        parameters = kind.parameters(len(image_set), embedder.model.embedding_size)
        snapshot = snapshot.select(np.flatnonzero([path not in broken for path in listed]))

    labels = image_set.labels if image_set.class_names else np.empty(0, np.int64)
    tried = tried or Images(features, labels, "indexed images")
    about = {**origin_of(embedder), "images": what, "broken": broken}
    build = partial(write_milvus_index, file) if is_milvus(file) else indexes.build_index
    search_index = build(
        features,
        image_set.paths,
        kind.name,
        labels=labels,
        class_names=image_set.class_names,
        metadata=about | choose_threshold(kind.unknown_threshold, tried, work.machine),
        options=parameters,
    )
    save_index(search_index, snapshot, file)

    log(f"{kind.name} index of {len(search_index)} images in {file}{shown_options(parameters)}")
    if kind.name != "exact" or isinstance(search_index, MilvusIndex):
        log(describe_recall(search_index, features, work.machine.device))
    return Path(file)


def save_index(search_index: AnyIndex, snapshot: Snapshot, file: str) -> None:
    """Write an index that no database holds to its file, with the snapshot of its images."""
    if isinstance(search_index, indexes.SearchIndex):
        search_index.snapshot = snapshot
        search_index.save(file)


def shown_options(parameters: dict[str, int]) -> str:
    """Return the parameters of an index as the end of a line."""
    return "".join(f", {name} {value}" for name, value in parameters.items())


def embed_calibrating(embedder: Embedder) -> Images | None:
    """Embed the val split, for the first process; None where there is none."""
    images = calibrating_images(embedder.work.data)
    if images is None:
        return None
    features, _ = embed_shared(embedder, images, "error")
    return Images(features, images.labels, "val split")


def origin_of(embedder: Embedder) -> dict[str, Any]:
    """Say in the metadata of an index what its embeddings depend on, and what made them."""
    work = embedder.work
    return {
        "fingerprint": embedder.depends_on["weights"],
        "depends_on": embedder.depends_on,
        "weights": work.origin,
        "flags": {name: work.flags[name] for name in (*EMBEDDING_NAMES, *VIEW_NAMES)},
        "versions": versions(),
    }


def embed_shared(
    embedder: Embedder, image_set: ImageSet, on_bad_image: str
) -> tuple[np.ndarray, dict[str, str]]:
    """Embed images, whole batches of those of one process by each: (N, D) float32, what is broken.

    The first process alone gets them.
    """
    work, world = embedder.work, embedder.work.machine.world
    batches = np.arange(len(image_set)) // work.batch_size
    own = np.flatnonzero(batches % world.size == world.rank)
    broken: dict[str, str] = {}
    rows = np.empty((0, embedder.model.embedding_size), np.float32)
    if len(own):
        noted = broken if on_bad_image == "skip" else None
        alone = replace(embedder, work=work.alone())
        rows = alone.embed(image_set.select(own), broken=noted)
    return gather_on_main(rows, own, world), merge(broken, world)


def describe_recall(search_index: AnyIndex, features: np.ndarray, device: torch.device) -> str:
    """Measure how much of the exact neighbours an approximate index finds, for the log."""
    k = min(RECALL_K, len(features) - 1)
    if k < 1:
        return "recall cannot be measured on one image"
    rng = np.random.default_rng(0)
    rows = np.sort(rng.choice(len(features), min(RECALL_QUERIES, len(features)), replace=False))
    recall = indexes.measure_recall(search_index, features[rows], k, features, rows, device)
    return f"finds {recall:.4f} of the exact {k} nearest, measured with {len(rows)} of its images"


class AnswerFiles(NamedTuple):
    """The files that answers are written to, where they are."""

    json: Path | None
    html: Path | None


def search(
    work: EmbeddingOptions,
    search_index: AnyIndex,
    queries: ImageSet | Sequence[str],
    k: int,
    files: AnswerFiles,
    on_bad_image: str,
    verify: bool = False,
    on_changed_data: str = "error",
    unknown_threshold: str | float | None = None,
) -> list[dict[str, Any]]:
    """Print the neighbours of images or texts and return them; write them to files, if any.

    Texts are embedded by the text tower of a CLIP model. Returns per query its `path` or `text`,
    `neighbours`, see `find_neighbours`, and `is_none`, see `threshold_of`. What `on_bad_image`
    leaves out, the file tells. Raises
    ValueError where the index is of other weights, or its images have changed, see `check_index`.
    """
    device = work.machine.device
    broken: dict[str, str] = {}
    threshold = threshold_of(search_index, unknown_threshold, isinstance(queries, ImageSet))
    embedder = load_embedder(work)
    file_of_index = work.flags["index"]
    for note in check_index(file_of_index, search_index, embedder, verify, on_changed_data):
        log(note)
    if isinstance(queries, ImageSet):
        features, queries, broken = embedder.embed_readable(queries, on_bad_image)
        asked = [{"path": path} for path in queries.paths]
    else:
        asked = [{"text": text} for text in queries]
        features = embed_texts(work.model.model, work.weights, queries, device)

    found = find_neighbours(search_index, features, k, device)
    answers: list[dict[str, Any]] = [
        {**query, "neighbours": neighbours} for query, neighbours in zip(asked, found, strict=True)
    ]
    mark_none(answers, threshold)
    if files.json is not None:  # before the screen, which may be a pipe that nobody reads any more
        made = {"index": file_of_index, "weights": work.weights, "versions": versions()}
        made |= {THRESHOLD: threshold}
        write_json(files.json, {"queries": answers, "broken": broken, **made})
    if files.html is not None:
        write_page(files.html, answers, file_of_index, embedder.preprocessing.decoding)
    print_answers(answers)
    return answers


def check_index(
    file: str,
    search_index: AnyIndex,
    embedder: Embedder,
    verify: bool = False,
    on_changed_data: str = "error",
) -> list[str]:
    """Compare what a search index depends on with the model that is to search it, and its images.

    Returns lines about what could not be compared, or differs and is accepted. Raises ValueError
    where the index is of other weights and so on, or images that are there have changed since,
    unless `on_changed_data` is accept.
    """
    notes = check_model(file, search_index, embedder)
    return notes + check_images(file, search_index, verify, on_changed_data)


def check_model(file: str, search_index: AnyIndex, embedder: Embedder) -> list[str]:
    """Compare what a search index depends on with a model, see `check_index`."""
    notes = []
    kept, found = dict(search_index.depends_on), dict(embedder.depends_on)
    precisions = kept.pop("precision", None), found.pop("precision")
    if precisions[0] != precisions[1]:
        notes.append(
            f"{file} was built in {precisions[0]}, queries are embedded in {precisions[1]}: "
            "cosines differ a little"
        )

    if kept.get("weights") != found["weights"]:
        raise ValueError(
            f"{file} was built with other weights ({search_index.metadata.get('weights')})"
            f" than --pretrained_model={embedder.work.origin}: give those, or build it again"
        )
    other = first_difference(kept, found)
    if other is not None:
        raise ValueError(f"{file} was built with another {other}: build it again")
    return notes


def check_images(
    file: str, search_index: AnyIndex, verify: bool, on_changed_data: str
) -> list[str]:
    """Compare the images of a search index with those that are there, see `check_index`."""
    if isinstance(search_index, MilvusIndex):
        return [f"{file}: images in a database are not compared with their files"]
    kept = search_index.snapshot
    assert kept is not None
    found = take_snapshot(search_index.paths, known=kept, verify=verify)
    is_there = found.states["size"] >= 0
    rows = [row for row in changed_rows(kept, found) if is_there[row]]
    notes = []
    if rows:
        changed = (
            f"{file}: {len(rows)} of its {len(kept)} images have changed since it was built, the "
            f"first {describe_change(kept, found, rows[0])}"
        )
        if on_changed_data != ACCEPT:
            raise ValueError(
                f"{changed}: build it again with infer.py --index={file} and the flags that built "
                f"it (of {search_index.metadata.get('images')}), which replaces it, embed those "
                "again by --add=PATH, or search it as it was built by --on_changed_data=accept"
            )
        notes.append(f"{changed}: accepted, they are found by what they were")

    num_gone = len(kept) - int(is_there.sum())
    if num_gone:
        notes.append(f"{num_gone} of {len(kept)} images of {file} are not here: not compared")
    return notes


def find_neighbours(
    search_index: AnyIndex, features: np.ndarray, k: int, device: torch.device
) -> list[list[dict[str, Any]]]:
    """Find the `k` nearest images of an index to embeddings (Q, D) float of queries.

    Returns per query its neighbours, each with `rank` (from 1), `row` in the index, `cosine`,
    `path` and `class_name` (None where it is not known).
    """
    rows, cosines = search_index.search(features, k, device)
    return [
        describe_neighbours(search_index, found, similar)
        for found, similar in zip(rows, cosines, strict=True)
    ]


def describe_neighbours(
    search_index: AnyIndex, rows: np.ndarray, cosines: np.ndarray
) -> list[dict[str, Any]]:
    """Describe the neighbours of one query, rows and cosines (k,), see `find_neighbours`."""
    entries = search_index.entries(rows)
    return [
        {
            "rank": n + 1,
            "row": int(row),
            "cosine": float(cosine),
            "path": path,
            "class_name": class_name,
        }
        for n, (row, cosine, (path, class_name)) in enumerate(
            zip(rows, cosines, entries, strict=True)
        )
    ]


def print_answers(answers: Sequence[dict[str, Any]]) -> None:
    """Print a line per query, and below it a line per neighbour: rank, cosine, path, class.

    Where the answer is "none", the line below says so instead.
    """
    for answer in answers:
        show(f"query {to_line(answer.get('text') or answer['path'])}")
        if answer["is_none"]:
            show(f"none: the nearest image has a cosine of {answer['neighbours'][0]['cosine']:.4f}")
            continue
        for found in answer["neighbours"]:
            name = "" if found["class_name"] is None else f"  {to_line(found['class_name'])}"
            show(f"{found['rank']:>4}  {found['cosine']:7.4f}  {to_line(found['path'])}{name}")
