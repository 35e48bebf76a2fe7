"""Snapshots of image sets, by which kept things recognise their images."""

from __future__ import annotations

from collections.abc import Iterator

from metric_learning.common.fingerprint import Snapshot, take_snapshot
from metric_learning.reader.sets.boxes import format_box
from metric_learning.reader.sets.image_set import ImageSet


def snapshot_of(
    image_set: ImageSet, known: Snapshot | None = None, verify: bool = False
) -> Snapshot:
    """Look at the images of a set and the names of their classes, see `take_snapshot`.

    Where not every image is both query and gallery, which of the two it is counts as well; so does
    the box of an image that is a part of a photo.
    """
    labels = list(label_names(image_set))
    return take_snapshot(image_set.paths, image_set.images, labels, known, verify)


def label_names(image_set: ImageSet) -> Iterator[str]:
    """Yield the name of each image's class, its role and its box, as a snapshot has it."""
    names, boxes = image_set.class_names, image_set.boxes
    if image_set.is_self_retrieval and boxes is None:
        for label in image_set.labels:
            yield str(names.get(int(label), label))
        return
    has_roles = not image_set.is_self_retrieval
    for row, label in enumerate(image_set.labels):
        name = names.get(int(label), label)
        is_query, is_gallery = image_set.is_query[row], image_set.is_gallery[row]
        roles = f"{' (query)' * bool(is_query)}{' (gallery)' * bool(is_gallery)}" * has_roles
        box = "" if boxes is None else f" ({format_box(boxes[row])})"
        yield f"{name}{roles}{box}"
