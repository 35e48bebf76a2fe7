"""What a dump is to hold, of which images: by it unfinished work is recognised, and goes on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from metric_learning.common.parquet import import_parquet
from metric_learning.engine.embed.dump.layout import Column, Shard, choose_shard_size, shards_of
from metric_learning.engine.embed.embedder import Embedder
from metric_learning.engine.options.evaluation import DumpOptions
from metric_learning.models.weights.fingerprint import hash_tensors
from metric_learning.reader import ImageSet

# Images whose rows are written at once, at most; of few images a process takes fewer at a time,
# so that all processes have some.
CHUNK_IMAGES, LEAST_CHUNKS = 1024, 64
MOST_SCORES = 5  # classes of an image, the best ones
SCORES, CLASSES = "scores", "classes"  # columns of these
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
        class_names: of the class layer, by the numbers in the column CLASSES.
    """

    num_images: int
    batch_size: int
    columns: tuple[Column, ...]
    shard_size: int
    facts: Mapping[str, Any]
    normalize: bool = False
    parquet: bool = False
    class_names: Sequence[str] = ()

    @property
    def exact(self) -> Column | None:
        """The features in float32, where they are kept to measure what fewer bits cost."""
        return next((column for column in self.columns if column.stem == "exact"), None)

    @property
    def num_scores(self) -> int:
        """How many classes are kept of each image."""
        return next((column.width for column in self.columns if column.stem == SCORES), 0)

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


def plan_features(embedder: Embedder, image_set: ImageSet) -> Plan:
    """Plan the features of images alone, in one file of float32."""
    column = Column("features", np.dtype(np.float32), embedder.model.embedding_size)
    batch_size = embedder.work.batch_size
    facts = {
        **embedder.depends_on,
        "list of images": digest_of_list(image_set),
        "batch size": batch_size,
    }
    return Plan(len(image_set), batch_size, (column,), len(image_set), facts)


def make_plan(embedder: Embedder, image_set: ImageSet, options: DumpOptions) -> Plan:
    """Plan the dump of images."""
    columns = choose_columns(embedder, image_set, options)
    size = choose_shard_size(options.shard_size, len(image_set), columns[0].row_bytes)
    facts = {
        **plan_features(embedder, image_set).facts,
        "length of features": "1" if options.normalize else "the network's",
        "files": [[column.stem, column.dtype.str, column.width] for column in columns],
        "shard size": size,
    }

    names = names_of_classes(embedder)
    if embedder.class_layer is not None:
        facts["class layer"] = hash_tensors(embedder.class_layer.state_dict())
        facts["class names"] = digest_of_texts(names)
    if options.parquet:
        facts["--parquet"] = True
        import_parquet()
    outputs = options.normalize, options.parquet, names
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
    if embedder.class_layer is not None:
        width = min(MOST_SCORES, len(embedder.class_layer.weight))
        columns.append(Column(SCORES, float32, width, is_published=False))
        columns.append(Column(CLASSES, np.dtype(np.int64), width, is_published=False))
    return tuple(columns)


def digest_of_list(image_set: ImageSet) -> str:
    """Identify the paths of images and their labels, whatever the files hold."""
    boxes = b"" if image_set.boxes is None else image_set.boxes.tobytes()
    digest = digest_of_texts(image_set.paths, image_set.labels.tobytes() + boxes)
    return f"{len(image_set)} images, {digest}"


def digest_of_texts(texts: Sequence[str], begin: bytes = b"") -> str:
    """Identify texts, behind what is to come before them."""
    digest = hashlib.sha256(begin)
    for start in range(0, len(texts), BLOCK):
        block = "".join(f"{text}\0" for text in texts[start : start + BLOCK])
        digest.update(block.encode("utf-8", "surrogateescape"))
    return f"sha256:{digest.hexdigest()[:32]}"


def names_of_classes(embedder: Embedder) -> list[str]:
    """Return the names of the classes of the class layer, by number; of others the numbers."""
    count = 0 if embedder.class_layer is None else len(embedder.class_layer.weight)
    names = [str(name) for name in embedder.work.meta.get("class_names", ())]
    return names if len(names) == count else [str(number) for number in range(count)]
