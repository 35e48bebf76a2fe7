"""What infer.py does with a search index: build one of embeddings, and answer queries with it."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch

from metric_learning.common.arrays import open_array
from metric_learning.common.atomic import write_json
from metric_learning.common.fingerprint import (
    STATE,
    Snapshot,
    changed_rows,
    describe_change,
    first_difference,
    relative_paths,
    take_snapshot,
)
from metric_learning.common.log import log, show, versions
from metric_learning.common.names import to_line
from metric_learning.common.outputs import json_kind, kind_of_file, prepare_folder
from metric_learning.common.parameters import parse_options
from metric_learning.engine.embed.dump.finish import WORK
from metric_learning.engine.embed.dump.layout import FEATURES
from metric_learning.engine.embed.dump.lines import Lines
from metric_learning.engine.embed.dump.partial import STATES, Partial, WorthlessError
from metric_learning.engine.embed.dump.plan import plan_features
from metric_learning.engine.embed.dump.shards import Given, ShardedFeatures
from metric_learning.engine.embed.dump.write import computed
from metric_learning.engine.embed.embedder import Embedder
from metric_learning.engine.embed.embedding import readable_rows
from metric_learning.engine.options.evaluation import EMBEDDING_NAMES, EmbeddingOptions
from metric_learning.engine.options.tables import ACCEPT, AUTO
from metric_learning.engine.options.training import VIEW_NAMES
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
from metric_learning.reader.sets.boxes import name_part
from metric_learning.reader.sets.snapshots import label_names, snapshot_of
from metric_learning.retrieval import indexes
from metric_learning.retrieval.index_kinds import INDEX_OPTIONS, choose_options
from metric_learning.retrieval.milvus import MilvusIndex, write_milvus_index
from metric_learning.retrieval.milvus_client import is_milvus, parse_place

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

    All processes embed, unless the features are `given`, and the first one builds. What is computed
    lies in FILE.partial until the index is there, and the same command goes on with it. What
    `on_bad_image` or a dump leaves out, the metadata of the index tell, and its threshold.
    """
    kind.parameters(len(image_set), embedder.model.embedding_size)  # a wrong one, before the work
    if len(image_set) == 0:
        raise ValueError("there is no image to embed: the data set is empty")
    is_main = embedder.work.machine.world.is_main
    tried = None if kind.unknown_threshold != AUTO else embed_calibrating(embedder)
    about = kind, embedder, image_set, what
    if given is not None:
        if is_main:
            write_index(file, *about, given, tried)
        return Path(file)

    folder = unfinished_folder(file)
    if folder.exists():
        prepare_folder("index", folder, WORK)
    partial = Partial(folder, plan_features(embedder, image_set))
    with computed(partial, embedder, image_set, on_bad_image, Lines(partial, False)):
        if is_main:
            write_index(file, *about, given_by(partial, image_set), tried)
            shutil.rmtree(folder)
    return Path(file)


def unfinished_folder(file: str) -> Path:
    """Return the folder of what is computed for an index; one in a database has it beside that."""
    if not is_milvus(file):
        return Path(f"{file}.partial")
    place = parse_place(file)
    beside = Path(place.database) if place.is_file else Path("milvus")
    return Path(f"{beside}.{place.name}.partial")


def given_by(partial: Partial, image_set: ImageSet) -> Given:
    """Return the features that were computed, of readable images alone."""
    broken = {name: error for part in partial.done.values() for _, name, error in part}
    is_read = np.ones(len(image_set), bool)
    is_read[[number for part in partial.done.values() for number, _, _ in part]] = False
    if not is_read.any():
        first = next(iter(broken.values()))
        raise WorthlessError(f"none of the {len(image_set)} images can be read: {first}")
    parts = [open_array(partial.place(*file), FEATURES) for file in partial.files()]
    rows = ShardedFeatures(parts, None, np.flatnonzero(is_read))
    states = np.fromfile(partial.folder / STATES, STATE)
    names = relative_paths(image_set.paths)
    snapshot = Snapshot(names, list(label_names(image_set)), states)
    return Given(rows, broken, False, snapshot)


def write_index(
    file: str,
    kind: IndexKind,
    embedder: Embedder,
    image_set: ImageSet,
    what: str,
    given: Given,
    tried: Images | None,
) -> None:
    """Build an index of features, and say what it holds.

    Its threshold, where one is asked for, is chosen on the images that were `tried`, or its own.
    """
    snapshot = given.snapshot or snapshot_of(image_set)
    readable = readable_rows(image_set, given.broken)
    if given.broken:
        snapshot = snapshot.select(readable)
        image_set = image_set.select(readable)
    # What is left may be too few images for what was chosen.
    parameters = kind.parameters(len(image_set), embedder.model.embedding_size)

    machine, features = embedder.work.machine, cast(np.ndarray, given.embeddings)
    indexed = Images(features, image_set, "indexed images")
    about = {**origin_of(embedder), "images": what, "broken": given.broken}
    build: Callable[..., AnyIndex] = indexes.build_index
    if is_milvus(file):
        build = functools.partial(write_milvus_index, file, states=snapshot.states)
    search_index = build(
        features,
        image_set.paths,
        kind.name,
        labels=indexed.labels,
        class_names=image_set.class_names,
        metadata=about | choose_threshold(kind.unknown_threshold, tried, indexed, machine),
        options=parameters,
        boxes=image_set.boxes,
    )
    if isinstance(search_index, indexes.SearchIndex):  # a database has written it already
        search_index.snapshot = snapshot
        search_index.save(file)

    shown = "".join(f", {name} {value}" for name, value in parameters.items())
    log(f"{kind.name} index of {len(search_index)} images in {file}{shown}")
    if kind.name != "exact" or isinstance(search_index, MilvusIndex):
        log(describe_recall(search_index, features, machine.device))


def embed_calibrating(embedder: Embedder) -> Images | None:
    """Embed the val split, which all processes share; None where there is none."""
    images = calibrating_images(embedder.work.data)
    if images is None:
        return None
    return Images(embedder.embed(images), images, "val split")


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

    Texts are embedded by the text tower of a CLIP model. Returns per query its `path`, with its
    `box` where images are parts of photos, or `text`; `neighbours`, see `find_neighbours`, each of
    which says whether its file `is_here`; and `is_none`, see `threshold_of`. What `on_bad_image`
    leaves out, the file tells. Raises ValueError where the index is of other weights, or images
    that were found have changed, see `check_found`, or any of it where they are to `verify`.
    """
    device = work.machine.device
    broken: dict[str, str] = {}
    threshold = threshold_of(search_index, unknown_threshold, isinstance(queries, ImageSet))
    embedder = Embedder.of(work)
    file_of_index = work.flags["index"]
    notes = check_model(file_of_index, search_index, embedder)
    if verify:
        notes += check_images(file_of_index, search_index, True, on_changed_data)
    for note in notes:
        log(note)
    if isinstance(queries, ImageSet):
        features, queries, broken = embedder.embed_readable(queries, on_bad_image)
        asked = describe_queries(queries)
    else:
        asked = [{"text": text} for text in queries]
        features = embed_texts(work.model.model, work.weights, queries, device)

    found = find_neighbours(search_index, features, k, device)
    for note in check_found(file_of_index, search_index, found, on_changed_data):
        log(note)
    answers: list[dict[str, Any]] = [
        {**query, "neighbours": neighbours} for query, neighbours in zip(asked, found, strict=True)
    ]
    mark_none(answers, threshold)
    if files.json is not None:  # before the screen, which may be a pipe that nobody reads any more
        made = {"index": file_of_index, "weights": work.weights, "versions": versions()}
        write_json(files.json, {"queries": answers, "broken": broken, **made, THRESHOLD: threshold})
    if files.html is not None:
        write_page(files.html, answers, file_of_index, embedder.preprocessing.decoding)
    print_answers(answers)
    return answers


def describe_queries(queries: ImageSet) -> list[dict[str, Any]]:
    """Return the `path` of each image, and its `box` where they are parts of photos."""
    if queries.boxes is None:
        return [{"path": path} for path in queries.paths]
    boxes = queries.boxes.tolist()
    return [{"path": path, "box": box} for path, box in zip(queries.paths, boxes, strict=True)]


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
    if isinstance(search_index, MilvusIndex) and not verify:
        return [f"{file}: images in a database are not compared with their files"]
    held = search_index.held()
    kept, found = look_again(held.paths, held.states, verify)
    what = f"of its {len(kept)} images"
    notes = judge_changes(file, search_index, kept, found, what, on_changed_data)

    num_gone = int((found.states["size"] < 0).sum())
    if num_gone:
        notes.append(f"{num_gone} of {len(kept)} images of {file} are not here: not compared")
    return notes


def check_found(
    file: str,
    search_index: AnyIndex,
    found: Sequence[Sequence[dict[str, Any]]],
    on_changed_data: str,
) -> list[str]:
    """Compare the images that were found with their files, and note in each whether it `is_here`.

    All others of the index are left alone: to look at each takes longer than to search it. Returns
    and raises what `check_index` does.
    """
    of_row = {one["row"]: one["path"] for neighbours in found for one in neighbours}
    rows, paths = np.array([*of_row], np.int64), [*of_row.values()]
    seen = look_again(paths, search_index.states(rows))
    kept, now = (replace(snapshot, names=paths) for snapshot in seen)  # for who reads them
    what = f"of the {len(paths)} images found"
    notes = judge_changes(file, search_index, kept, now, what, on_changed_data)

    is_here = dict(zip(of_row, (now.states["size"] >= 0).tolist(), strict=True))
    for neighbours in found:
        for one in neighbours:
            one["is_here"] = is_here[one["row"]]
    gone = [path for row, path in of_row.items() if not is_here[row]]
    if gone:
        first = to_line(gone[0])
        notes.append(f"{len(gone)} {what} are not here: not compared, the first {first}")
    return notes


def look_again(
    paths: Sequence[str], states: np.ndarray, verify: bool = False
) -> tuple[Snapshot, Snapshot]:
    """Return snapshots of files as they were embedded, of these states (M,), and as they are."""
    kept = Snapshot(relative_paths(paths), [], states)
    return kept, take_snapshot(paths, known=kept, verify=verify)


def judge_changes(
    file: str,
    search_index: AnyIndex,
    kept: Snapshot,
    found: Snapshot,
    what: str,
    on_changed_data: str,
) -> list[str]:
    """Return a line about images that are there and have changed; ValueError unless accepted."""
    is_known = (kept.states["size"] >= 0) & (found.states["size"] >= 0)
    rows = [row for row in changed_rows(kept, found) if is_known[row]]
    if not rows:
        return []

    changed = (
        f"{file}: {len(rows)} {what} have changed since it was built, the first "
        f"{to_line(describe_change(kept, found, rows[0]))}"
    )
    if on_changed_data != ACCEPT:
        raise ValueError(
            f"{changed}: build it again with infer.py --index={file} and the flags that built it "
            f"(of {search_index.metadata.get('images')}), which replaces it, embed those again by "
            "--add=PATH, or search it as it was built by --on_changed_data=accept"
        )
    return [f"{changed}: accepted, they are found by what they were"]


def find_neighbours(
    search_index: AnyIndex, features: np.ndarray, k: int, device: torch.device
) -> list[list[dict[str, Any]]]:
    """Find the `k` nearest images of an index to embeddings (Q, D) float of queries.

    Returns per query its neighbours, each with `rank` (from 1), `row` in the index, `cosine`,
    `path` and `class_name` (None where it is not known), and the `box` where images are parts of
    photos.
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
            "path": entry.path,
            "class_name": entry.class_name,
            **({} if entry.box is None else {"box": [*entry.box]}),
        }
        for n, (row, cosine, entry) in enumerate(zip(rows, cosines, entries, strict=True))
    ]


def print_answers(answers: Sequence[dict[str, Any]]) -> None:
    """Print a line per query, and below it a line per neighbour: rank, cosine, path, class.

    Where the answer is "none", the line below says so instead.
    """
    for answer in answers:
        show(f"query {to_line(answer.get('text') or name_part(answer['path'], answer.get('box')))}")
        if answer["is_none"]:
            show(f"none: the nearest image has a cosine of {answer['neighbours'][0]['cosine']:.4f}")
            continue
        for found in answer["neighbours"]:
            name = "" if found["class_name"] is None else f"  {to_line(found['class_name'])}"
            image = to_line(name_part(found["path"], found.get("box")))
            gone = "" if found["is_here"] else "  (not here)"
            show(f"{found['rank']:>4}  {found['cosine']:7.4f}  {image}{name}{gone}")
