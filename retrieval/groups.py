"""Groups of images, such as those of a camera: what a query does not look for in its gallery.

The rule of Market-1501 (Zheng et al. 2015, Scalable Person Re-identification, section 4.2): gallery
images of the query's own class and group are neither right nor wrong. They are taken out of its
ranking, which is then that of the other images.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

NO_GROUP = -1  # of an image that shares its group with no other


class Groups(NamedTuple):
    """The groups of queries and of their gallery."""

    queries: np.ndarray  # (Q,) int64, as is the gallery's (G,)
    gallery: np.ndarray

    def are_same(self, query_rows: np.ndarray, gallery_rows: np.ndarray) -> np.ndarray:
        """Whether query and gallery image of pairs (M,) have a group and share it, (M,) bool."""
        asked = self.queries[query_rows]
        is_same: np.ndarray = (asked == self.gallery[gallery_rows]) & (asked != NO_GROUP)
        return is_same


def checked_groups(
    groups: np.ndarray | None,
    gallery_groups: np.ndarray | None,
    num_queries: int,
    gallery: np.ndarray | None,
) -> Groups | None:
    """Check the groups of queries and `gallery`, or of all images where there is no gallery.

    Raises ValueError where one of the two is missing, or their number is not that of the images.
    """
    if groups is None and gallery_groups is None:
        return None
    if groups is None or (gallery_groups is None) != (gallery is None):
        raise ValueError("expected groups of the queries, and of the gallery where there is one")
    given: dict[str, tuple[Any, int]] = {"queries": (groups, num_queries)}
    if gallery is not None:
        given["the gallery"] = gallery_groups, len(gallery)

    found = []
    for what, (numbers, size) in given.items():
        numbers = np.asarray(numbers)
        if numbers.shape != (size,) or not np.issubdtype(numbers.dtype, np.integer):
            raise ValueError(
                f"expected {size} integer groups of {what}, found an array of {numbers.dtype} and "
                f"shape {numbers.shape}"
            )
        found.append(numbers.astype(np.int64))
    return Groups(found[0], found[-1])


def count_ignored(
    labels: np.ndarray, gallery_labels: np.ndarray, groups: Groups, is_in_gallery: np.ndarray
) -> np.ndarray:
    """Count the gallery images that each query's group and class rule out, but itself: (Q,) int64.

    Labels are (Q,) and (G,) int64; `is_in_gallery` (Q,) bool tells which queries the gallery holds.
    """
    pairs = np.stack([np.concatenate([labels, gallery_labels]), np.concatenate([*groups])], axis=1)
    codes = np.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1)
    asked, searched = codes[: len(labels)], codes[len(labels) :]
    counts = np.bincount(searched, minlength=int(codes.max(initial=0)) + 1)[asked]
    return np.where(groups.queries == NO_GROUP, 0, counts - is_in_gallery)
