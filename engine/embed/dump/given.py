"""A dump that is given in place of the work: its features, where they are those of the images."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from metric_learning.common.fingerprint import Snapshot, first_difference
from metric_learning.engine.embed.dump.layout import META
from metric_learning.engine.embed.dump.opened import open_features
from metric_learning.engine.embed.dump.shards import Given, refuse_incomplete
from metric_learning.engine.embed.embedder import Embedder
from metric_learning.engine.parallel.collectives import decide_on_main
from metric_learning.reader import ImageSet
from metric_learning.reader.sets.snapshots import snapshot_of

REMEDY = "write it again with infer.py, or embed the images without it"


def take_features(folder: Path, embedder: Embedder, image_set: ImageSet) -> Given:
    """Read the features of a dump that a model made of images; every image is compared by content.

    Raises ValueError where the dump is unfinished or damaged, or of other weights, preprocessing,
    images or classes.
    """
    refuse_incomplete(folder)
    if not (folder / META).is_file():
        raise ValueError(f"{folder} holds no {META}: expected features that infer.py wrote")
    found = open_features(folder)
    kept = dict(found.meta.get("depends_on", {}))
    images = kept.pop("images", None)
    other = first_difference(kept, dict(embedder.depends_on))
    if other is not None:
        raise ValueError(f"{folder} holds features of other {other}: {REMEDY}")

    looks: list[Snapshot] = []

    def look() -> str:
        looks.append(snapshot_of(image_set))
        return looks[0].digest()

    digest = decide_on_main(embedder.work.machine.world, look)
    broken = dict(found.meta.get("broken", {}))
    num_readable = sum(image_set.name_of(row) not in broken for row in range(len(image_set)))
    if digest != images or num_readable != len(found):
        raise ValueError(
            f"{folder} holds features of other images, or these have changed since "
            f"({images}, not {digest}): {REMEDY}"
        )
    has_unit_length = bool(found.meta.get("flags", {}).get("normalize"))
    return Given(found.embeddings, broken, has_unit_length, looks[0] if looks else None)


def take_whole_features(
    folder: Path, embedder: Embedder, image_set: ImageSet, needs_lengths: bool
) -> tuple[np.ndarray, Snapshot | None]:
    """Take features as `take_features` does, for a score of all images.

    Returns:
        Embeddings (N, D) float32 in memory, and the snapshot of the images.

    Raises:
        ValueError: as there; images are left out, or a score needs lengths and these are 1.
    """
    given = take_features(folder, embedder, image_set)
    if given.broken:
        raise ValueError(
            f"{folder} leaves out {len(given.broken)} unreadable images, and a score is of all: "
            f"{REMEDY}"
        )
    if given.has_unit_length and needs_lengths:
        raise ValueError(
            f"{folder} holds normalised features, and the class layer, --whiten or --distance "
            f"needs their lengths: {REMEDY}"
        )
    return np.asarray(given.embeddings, np.float32), given.snapshot
