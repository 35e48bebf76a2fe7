"""What infer.py does: dump features, build or search an index, or export the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metric_learning.common.log import log
from metric_learning.common.outputs import prepare_folder, prepare_output
from metric_learning.engine.embed.dump import DUMP, dump_features
from metric_learning.engine.embed.embedder import load_embedder, open_images
from metric_learning.engine.embed.export import export_model
from metric_learning.engine.embed.search import ANSWERS, INDEX, IndexKind, make_index, search
from metric_learning.engine.options.evaluation import InferenceOptions
from metric_learning.engine.parallel.world import is_first_process
from metric_learning.reader import ImageSet, describe_sets
from metric_learning.reader.sets.plain_images import list_plain_images


def infer(options: InferenceOptions) -> Path | list[dict[str, Any]]:
    """Return the folder of the dump, the file of the index or export, or the answers to queries.

    Of the processes of torchrun the first one does it all; the others return nothing, so that no
    two write the same files.
    """
    if not is_first_process():
        return []
    work = options.work
    if options.export is not None:
        return export_model(work, options.export, options.output, options.normalize)
    if options.search_index is not None:
        queries = open_plain_images(options.query) if options.query else options.query_text
        file = prepare_output("json", options.json, ANSWERS) if options.json else None
        index, on_bad_image = options.search_index, options.on_bad_image
        compared = options.verify, options.on_changed_data
        return search(work, index, queries, options.topk, file, on_bad_image, *compared)

    if options.index is not None:
        prepare_output("index", options.index, INDEX)
    else:
        prepare_folder("output_dir", options.output_dir, DUMP)
    embedder = load_embedder(work)
    log(embedder.source)
    may_miss = options.on_bad_image == "skip"
    images = (
        open_plain_images(options.images)
        if options.images
        else open_images(work, may_miss, may_repeat=True)
    )
    if options.index is None:
        return dump_features(Path(options.output_dir), embedder, images, options.on_bad_image)
    kind = IndexKind(options.index_type, options.index_options)
    what = options.images or f"{work.data.dataset}, {work.split}"
    return make_index(Path(options.index), kind, embedder, images, what, options.on_bad_image)


def open_plain_images(path: str) -> ImageSet:
    """List an image or all below a folder, and say how many, and what is left out."""
    images = list_plain_images(path)
    for line in describe_sets([images]):
        log(line)
    return images
