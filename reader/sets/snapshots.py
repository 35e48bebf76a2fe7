"""Snapshots of image sets, by which kept things recognise their images."""

from __future__ import annotations

from collections.abc import Iterator

from metric_learning.common.fingerprint import Snapshot, take_snapshot
from metric_learning.reader.sets.image_set import ImageSet


def snapshot_of(
    image_set: ImageSet, known: Snapshot | None = None, verify: bool = False
) -> Snapshot:
    """Look at the images of a set and the names of their classes, see `take_snapshot`.

    Where not every image is both query and gallery, which of the two it is counts as well.
    """
    labels = list(label_names(image_set))
    return take_snapshot(image_set.paths, image_set.images, labels, known, verify)


def label_names(image_set: ImageSet) -> Iterator[str]:
    """Yield the name of each image's class, and its role, as a snapshot has it."""
    names = image_set.class_names
    if image_set.is_self_retrieval:
        for label in image_set.labels:
            yield str(names.get(int(label), label))
        return
    roles = zip(image_set.labels, image_set.is_query, image_set.is_gallery, strict=True)
    for label, is_query, is_gallery in roles:
        name = names.get(int(label), label)
        yield f"{name}{' (query)' * bool(is_query)}{' (gallery)' * bool(is_gallery)}"
