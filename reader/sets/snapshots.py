"""Snapshots of image sets, by which kept things recognise their images."""

from __future__ import annotations

from metric_learning.common.fingerprint import Snapshot, take_snapshot
from metric_learning.reader.sets.image_set import ImageSet


def snapshot_of(
    image_set: ImageSet, known: Snapshot | None = None, verify: bool = False
) -> Snapshot:
    """Look at the images of a set and the names of their classes, see `take_snapshot`.

    Where not every image is both query and gallery, which of the two it is counts as well.
    """
    labels = [str(image_set.class_names.get(n, n)) for n in image_set.labels.tolist()]
    if not image_set.is_self_retrieval:
        roles = zip(image_set.is_query, image_set.is_gallery, strict=True)
        labels = [
            f"{label}{' (query)' * bool(is_query)}{' (gallery)' * bool(is_gallery)}"
            for label, (is_query, is_gallery) in zip(labels, roles, strict=True)
        ]
    return take_snapshot(image_set.paths, image_set.images, labels, known, verify)
