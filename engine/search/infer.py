"""What infer.py does: dump features, build or search an index, or export the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from metric_learning.common.log import log
from metric_learning.common.outputs import prepare_folder, prepare_output
from metric_learning.engine.embed.dump import DUMP, dump_features
from metric_learning.engine.embed.dump.given import take_features
from metric_learning.engine.embed.embedder import Embedder, open_images
from metric_learning.engine.embed.export import export_model
from metric_learning.engine.embed.hub import export_hub
from metric_learning.engine.options.evaluation import InferenceOptions
from metric_learning.engine.parallel.collectives import decide_on_main
from metric_learning.engine.parallel.world import is_first_process, leave_world
from metric_learning.engine.search.lock import build_lock
from metric_learning.engine.search.page import ANSWER_PAGE
from metric_learning.engine.search.search import (
    ANSWERS,
    INDEX,
    AnswerFiles,
    IndexKind,
    make_index,
    search,
)
from metric_learning.engine.search.update import update_index
from metric_learning.reader import ImageSet, describe_sets
from metric_learning.reader.sets.plain_images import join_plain_images
from metric_learning.retrieval.milvus_client import is_milvus, parse_place, prepare_place


def infer(options: InferenceOptions) -> Path | list[dict[str, Any]]:
    """Return the folder of the dump, the file of the index or export, or the answers to queries.

    The processes of torchrun share the images of a dump or an index. All else the first one does
    alone, and the others return nothing, so that no two write the same files.
    """
    work, on_bad_image = options.work, options.on_bad_image
    world = work.machine.world
    if world.size == 1 and not is_first_process():
        return []
    if options.export == "hub":
        return export_hub(work, options.output, options.figures)
    if options.export is not None:
        return export_model(work, options.export, options.output, options.normalize)
    if options.changes_index:
        return update_index(work, options.add, options.remove, on_bad_image)
    if options.search_index is not None:
        queries = open_plain_images([options.query]) if options.query else options.query_text
        files = AnswerFiles(
            prepare_output("json", options.json, ANSWERS) if options.json else None,
            prepare_output("html", options.html, ANSWER_PAGE) if options.html else None,
        )
        compared = options.verify, options.on_changed_data, options.unknown_threshold
        index = options.search_index
        return search(work, index, queries, options.topk, files, on_bad_image, *compared)

    if options.index is not None:
        decide_on_main(world, lambda: prepare_index(options.index or ""))
    else:
        decide_on_main(world, lambda: prepare_folder("output_dir", options.output_dir, DUMP))
    embedder = Embedder.of(work)
    work.say(embedder.source)
    may_miss = on_bad_image == "skip"
    images = (
        open_plain_images(options.images, work.say)
        if options.images
        else open_images(work, may_miss, may_repeat=True)
    )
    if options.index is None:
        written = Path(options.output_dir)
        dump_features(written, embedder, images, on_bad_image, options.dump)
    else:
        kind = IndexKind(options.index_type, options.index_options, options.unknown_threshold)
        what = ", ".join(options.images) or f"{work.data.dataset}, {work.split}"
        folder = options.features
        given = None if folder is None else take_features(Path(folder), embedder, images)
        with build_lock(options.index, world):
            written = make_index(options.index, kind, embedder, images, what, on_bad_image, given)
    leave_world(world)
    return written


def prepare_index(index: str) -> None:
    """Try whether an index can be written to a file or a Milvus database; ValueError if not."""
    if is_milvus(index):
        prepare_place(parse_place(index)).close()
    else:
        prepare_output("index", index, INDEX)


def open_plain_images(paths: Sequence[str], say: Callable[[str], object] = log) -> ImageSet:
    """List images or all below folders, and say how many, and what is left out."""
    images = join_plain_images(paths)
    for line in describe_sets([images]):
        say(line)
    return images
