"""Dump the features of images, and the class scores where the checkpoint has a class layer.

python infer.py --pretrained_model=output/ResNet50_eml/best.pt --images=photos/

With --index, build a search index of the images instead; with --query as well, search it:

python infer.py --pretrained_model=output/ResNet50_eml/best.pt --images=photos/ --index=photos.index
python infer.py --pretrained_model=output/ResNet50_eml/best.pt --index=photos.index --query=a.jpg

With --export, write the model as one file that is used without this project:

python infer.py --pretrained_model=output/ResNet50_eml/best.pt --export=onnx --output=photos.onnx

With weights of a CLIP model, --query_text="a red sofa" searches an index for what words describe.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from metric_learning.common.cli import user_errors
from metric_learning.common.flags import Flag, parse_flags, path, positive
from metric_learning.common.log import log
from metric_learning.engine.embed.dump import dump_features
from metric_learning.engine.embed.export import EXPORT_FLAGS, export_model
from metric_learning.engine.embed.inference import (
    DATA_SET_FLAGS,
    Embedder,
    load_embedder,
    load_split,
    refuse_flags,
)
from metric_learning.engine.embed.search import (
    build_from,
    describe_recall,
    embed,
    index_options,
    prepare_index,
    search,
)
from metric_learning.engine.options.flags import (
    CLASS_FLAGS,
    DATA_FLAGS,
    MACHINE_FLAGS,
    MODEL_FLAGS,
    with_defaults,
)
from metric_learning.engine.parallel.devices import choose_device
from metric_learning.reader import ImageSet
from metric_learning.reader.sets.plain_images import list_plain_images
from metric_learning.retrieval.index_kinds import INDEX_OPTIONS

FLAGS = (
    *MODEL_FLAGS,
    *CLASS_FLAGS,
    Flag("batch_size", positive, 1, "images per batch"),
    Flag("images", path, None, "an image or a folder of images, instead of a data set"),
    Flag("split", str, "test", "split of the data set", ("test", "train")),
    Flag("output_dir", path, "features", "folder for features.npy, paths.txt and so on"),
    Flag("index", path, None, "search index: built of the images, or searched by a query"),
    Flag("index_type", str, "exact", "kind of index that is built", tuple(INDEX_OPTIONS)),
    Flag("index_options", str, "", "its parameters, e.g. nlist=1000,nprobe=32"),
    Flag("query", path, None, "an image or a folder of images to search for in --index"),
    Flag(
        "query_text",
        str,
        (),
        "words to search for in an --index of a CLIP model; may be given several times",
        repeats=True,
    ),
    Flag("topk", positive, 10, "neighbours per query"),
    Flag("json", path, None, "file to write the neighbours to"),
    *EXPORT_FLAGS,
    *DATA_FLAGS,
    *with_defaults(MACHINE_FLAGS, amp="off"),
)
DATA_SOURCE_FLAGS = ("split", "dataset", *DATA_SET_FLAGS)
QUERY_FLAGS = ("query", "query_text")


def main(argv: Sequence[str] | None = None) -> Path | list[dict[str, Any]]:
    """Return the folder of the dump, the file of the index or export, or the answers to queries."""
    with user_errors():
        args, given = parse_flags(__doc__, FLAGS, argv)
        if args.export is not None:
            return export_model(args, given)
        check_flags(args, given)
        if given.intersection(QUERY_FLAGS):
            return search(args, given)
        if args.index is not None:
            prepare_index(args)
        device = choose_device(args, log)
        embedder = load_embedder(args, given, device)
        log(embedder.source)
        images = list_plain_images(args.images) if args.images else load_split(args, args.split)
        if args.index is None:
            return dump_features(args, embedder, images, device)
        return build(args, embedder, images, device)


def check_flags(args: Namespace, given: set[str]) -> None:
    """Raise ValueError where a flag was given that nothing would use."""
    refuse_flags(given, ("output", "normalize"), "without --export")
    queries = [name for name in QUERY_FLAGS if name in given]
    if queries:
        check_query_flags(args, given, queries)
        return
    refuse_flags(given, ("topk", "json"), "without --query or --query_text")
    if args.index is None:
        refuse_flags(given, ("index_type", "index_options"), "without --index")
    else:
        refuse_flags(given, ("output_dir", "class_dim"), "--index is all that is written")
    if args.images is not None:
        refuse_flags(given, DATA_SOURCE_FLAGS, "--images is used instead of a data set")


def check_query_flags(args: Namespace, given: set[str], queries: Sequence[str]) -> None:
    """Raise ValueError where a search lacks something, or was given what nothing would use."""
    if len(queries) > 1:
        raise ValueError("expected --query or --query_text, found both: leave one of them out")
    query = f"--{queries[0]}"
    if args.index is None:
        raise ValueError(f"{query} searches an index: give it as --index=FILE")
    if args.query == "":  # would be the working directory
        raise ValueError("expected an image or a folder behind --query=, found nothing")
    if not all(text.strip() for text in args.query_text):
        raise ValueError("expected words behind --query_text=, found nothing")
    unused = ("images", *DATA_SOURCE_FLAGS, "output_dir", "index_type", "index_options")
    refuse_flags(given, (*unused, "class_dim"), f"{query} searches the images of --index")
    if args.query is None:
        refuse_flags(given, ("batch_size", "num_workers", "amp"), f"{query} reads no images")


def build(args: Namespace, embedder: Embedder, images: ImageSet, device: torch.device) -> Path:
    """Build the search index of the images and return its file."""
    options = index_options(args, len(images), embedder.model.embedding_size)
    features = embed(args, embedder, images, device)
    search_index = build_from(args, options, embedder, images, features)
    search_index.save(args.index)
    parameters = "".join(f", {name} {value}" for name, value in options.items())
    log(f"{args.index_type} index of {len(search_index)} images in {args.index}{parameters}")
    if args.index_type != "exact":
        log(describe_recall(search_index, features, device))
    return Path(args.index)


if __name__ == "__main__":
    main()
