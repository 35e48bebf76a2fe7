"""What a dump is to hold, of which images: by it unfinished work is recognised, and goes on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from metric_learning.common.parquet import import_parquet
from metric_learning.engine.embed.dump.layout import Column, Shard, choose_shard_size, shards_of
from metric_learning.engine.embed.embedder import Embedder
from metric_learning.engine.options.evaluation import DumpOptions
from metric_learning.reader import ImageSet

# Images whose rows are written at once, at most; of few images a process takes fewer at a time,
# so that all processes have some.
CHUNK_IMAGES, LEAST_CHUNKS = 1024, 64
MOST_COMPARED = 100_000  # images of known labels, of which the Recall@1 of fewer bits is measured
BLOCK = 4096  # paths that are looked at at once


@dataclass(frozen=True)
class Plan:
    """What is computed, and into which files.

    Attributes:
        num_images: how many images there are, readable or not.
        batch_size: images that the network takes at once, which changes the last bits.
        columns: what is kept of each image.
        shard_size: images of a file.
        facts: all that other results would follow from, as JSON has it.
        normalize: whether features have length 1.
        parquet: whether they are written as Parquet too.
    """

    num_images: int
    batch_size: int
    columns: tuple[Column, ...]
    shard_size: int
    facts: Mapping[str, Any]
    normalize: bool = False
    parquet: bool = False

    @property
    def exact(self) -> Column | None:
        """The features in float32, where they are kept to measure what fewer bits cost."""
        return next((column for column in self.columns if column.stem == "exact"), None)

    @property
    def shards(self) -> list[Shard]:
        """The images of each file."""
        return shards_of(self.num_images, self.shard_size)

    @property
    def chunk_size(self) -> int:
        """Images of a chunk, which is done as a whole: whole batches, whoever takes them."""
        num_batches = -(-self.num_images // self.batch_size)
        most = max(1, CHUNK_IMAGES // self.batch_size)
        return self.batch_size * min(most, max(1, num_batches // LEAST_CHUNKS))

    @property
    def num_chunks(self) -> int:
        """How many chunks there are."""
        return -(-self.num_images // self.chunk_size)

    def chunk(self, number: int) -> range:
        """Return the numbers of the images of a chunk."""
        start = number * self.chunk_size
        return range(start, min(start + self.chunk_size, self.num_images))


def make_plan(embedder: Embedder, image_set: ImageSet, options: DumpOptions) -> Plan:
    """Plan the dump of images."""
    columns = choose_columns(embedder, image_set, options)
    size = choose_shard_size(options.shard_size, len(image_set), columns[0].row_bytes)
    facts = {
        **embedder.depends_on,
        "list of images": digest_of_list(image_set),
        "batch size": embedder.work.batch_size,
        "length of features": "1" if options.normalize else "the network's",
        "files": [[column.stem, column.dtype.str, column.width] for column in columns],
        "shard size": size,
    }

    if options.parquet:
        facts["--parquet"] = True
        import_parquet()
    outputs = options.normalize, options.parquet
    return Plan(len(image_set), embedder.work.batch_size, columns, size, facts, *outputs)


def choose_columns(
    embedder: Embedder, image_set: ImageSet, options: DumpOptions
) -> tuple[Column, ...]:
    """Return what is kept of each image; the features come first."""
    size, float32 = embedder.model.embedding_size, np.dtype(np.float32)
    columns = [Column("features", np.dtype(options.feature_dtype), size)]
    if options.feature_dtype == "int8":
        columns.append(Column("scales", float32, 0))
    if columns[0].dtype != float32 and image_set.class_names and len(image_set) <= MOST_COMPARED:
        columns.append(Column("exact", float32, size, is_published=False))
    if embedder.class_layer is not None and options.print_features:
        columns.append(Column("scores", float32, 1, is_published=False))
        columns.append(Column("classes", np.dtype(np.int64), 1, is_published=False))
    return tuple(columns)


def digest_of_list(image_set: ImageSet) -> str:
    """Identify the paths of images and their labels, whatever the files hold."""
    digest = hashlib.sha256(image_set.labels.tobytes())
    for start in range(0, len(image_set), BLOCK):
        paths = image_set.paths[start : start + BLOCK]
        digest.update("".join(f"{path}\0" for path in paths).encode("utf-8", "surrogateescape"))
    return f"{len(image_set)} images, sha256:{digest.hexdigest()[:32]}"
