"""Dump the features of images, and the class scores where the checkpoint has a class layer.

python infer.py --pretrained_model=output/ResNet50_eml/best.pt --images=photos/

With --index, build a search index of the images instead; with --query as well, search it:

python infer.py --pretrained_model=output/ResNet50_eml/best.pt --images=photos/ --index=photos.index
python infer.py --pretrained_model=output/ResNet50_eml/best.pt --index=photos.index --query=a.jpg

With --add and --remove, change an index without building it again:

python infer.py --pretrained_model=output/ResNet50_eml/best.pt --index=photos.index --add=new/
python infer.py --index=photos.index --remove=photos/sold

With --export, write the model as one file that is used without this project:

python infer.py --pretrained_model=output/ResNet50_eml/best.pt --export=onnx --output=photos.onnx

With weights of a CLIP model, --query_text="a red sofa" searches an index for what words describe.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metric_learning.common.cli import user_errors
from metric_learning.common.flags import (
    Flag,
    boolean,
    grouped,
    parse_flags,
    path,
    positive,
    with_defaults,
)
from metric_learning.engine.options.tables import (
    AVERAGE_FLAGS,
    BAD_IMAGE_POLICIES,
    CLASS_FLAGS,
    DATA_FLAGS,
    EXPORT_FLAGS,
    FEATURE_DTYPES,
    MACHINE_FLAGS,
    MODEL_FLAGS,
    OTHERS_LACK,
    SEARCH_FLAGS,
    SPLITS,
)

FLAGS = (
    *DATA_FLAGS,
    *grouped(
        "data",
        Flag(
            "images",
            path,
            None,
            "images instead of a data set: a file, a folder, a list of paths (.txt, or .csv with "
            "boxes), a .tar, or - for paths from standard input; may be given several times",
            repeats=True,
        ),
        Flag("split", str, "test", "split of the data set; all: every image once", SPLITS),
        Flag(
            "on_bad_image",
            str,
            None,
            "what happens at an image that is missing or cannot be decoded. error: stop, and write "
            "nothing; skip: leave it out, listed and counted. Default: error; skip while an "
            "--index is built",
            BAD_IMAGE_POLICIES,
        ),
    ),
    *MODEL_FLAGS,
    *CLASS_FLAGS,
    *AVERAGE_FLAGS,
    *grouped(
        "output",
        Flag("output_dir", path, "features", "folder for features.npy, paths.txt and so on"),
        Flag(
            "shard_size",
            positive,
            None,
            "images of a file of features; default: all are in one file, unless it had 1 GiB",
        ),
        Flag(
            "feature_dtype",
            str,
            "float32",
            "numbers of the features; int8: times the number of each row in scales.npy",
            FEATURE_DTYPES,
        ),
        Flag("parquet", boolean, False, "write the features with paths and labels as Parquet too"),
        Flag("print_features", boolean, True, "print the features and class scores"),
        Flag("json", path, None, "file to write the neighbours to"),
    ),
    *SEARCH_FLAGS,
    *EXPORT_FLAGS,
    *with_defaults(MACHINE_FLAGS, amp="off"),
    *grouped(
        "machine", Flag("batch_size", positive, 1, "images per batch; not given, 64 on a GPU")
    ),
)


def main(argv: Sequence[str] | None = None) -> Path | list[dict[str, Any]]:
    """Return the folder of the dump, the file of the index or export, or the answers to queries."""
    with user_errors():
        flags = parse_flags(__doc__, FLAGS, argv, elsewhere=OTHERS_LACK)

        from metric_learning.engine.options.evaluation import settle_inference
        from metric_learning.engine.search.infer import infer  # torch and all else, only now

        return infer(settle_inference(flags))


if __name__ == "__main__":
    main()
