"""What keeps images on one side of a division: their groups, and near duplicates."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from metric_learning.common.names import to_line
from metric_learning.data.prepare.hashes import check_threshold, group_near_duplicates
from metric_learning.data.prepare.scan import SCAN_COLUMNS, read_hashes
from metric_learning.reader.sets.csv_files import ImageList

NONE = "none"  # as --group or --threshold: images of one group, or near duplicates, may be divided
DEFAULT_THRESHOLD = 4  # bits


@dataclass(frozen=True)
class Ties:
    """Numbers (N,) int64 of N images; those of one number stay together. None: there are none."""

    groups: np.ndarray | None = None
    copies: np.ndarray | None = None  # near duplicates

    def select(self, rows: np.ndarray) -> Ties:
        """The ties among the images of these numbers."""
        return Ties(*(None if tie is None else tie[rows] for tie in (self.groups, self.copies)))

    def join(self, parts: np.ndarray) -> np.ndarray:
        """Join parts (N,) int64 of which an image is tied to one of another: (N,) int64.

        Where none is, they keep their order.
        """
        from scipy.sparse import coo_matrix
        from scipy.sparse.csgraph import connected_components

        numbers, links = np.unique(parts, return_inverse=True)[1], []
        num_nodes = int(numbers.max()) + 1
        for tie in (self.groups, self.copies):
            if tie is not None:
                links.append(num_nodes + np.unique(tie, return_inverse=True)[1])
                num_nodes = int(links[-1].max()) + 1
        if not links:
            return numbers

        ends = np.tile(numbers, len(links)), np.concatenate(links)
        graph = coo_matrix((np.ones(len(ends[0])), ends), (num_nodes, num_nodes))
        return connected_components(graph, directed=False)[1][numbers]


def tie_groups(images: ImageList, column: str | None) -> np.ndarray | None:
    """Number the groups of N images, (N,) int64; None: there are none.

    They are in the column `group` by default; an empty cell is a group of its own. Raises
    ValueError where a column was named and is not there.
    """
    name = column or "group"
    if column == NONE or (column is None and name not in images.columns):
        return None
    if name not in images.columns:
        raise ValueError(f"--group={name}: {images.file} has no such column")
    cells = [row[name] for row in images.rows]
    keys = [f"group {cell}" if cell else f"image {i}" for i, cell in enumerate(cells)]
    return np.unique(keys, return_inverse=True)[1]


def tie_duplicates(images: ImageList, threshold: int | str | None) -> np.ndarray | None:
    """Number the groups of near duplicates of N images, (N,) int64; None: nobody looks for them.

    Args:
        images: whole ones.
        threshold: bits in which hashes of near duplicates differ at most; None: 4 in a list that
            scan wrote, and otherwise, or for "none", they are not looked for.

    Raises ValueError where a list without hashes has a threshold.
    """
    is_scanned = set(SCAN_COLUMNS) <= set(images.columns)
    if threshold == NONE or (threshold is None and not is_scanned):
        return None
    if not is_scanned:
        raise ValueError(
            f"--threshold={threshold}: {images.file} has no hashes: expected a file that scan wrote"
        )
    bits = DEFAULT_THRESHOLD if threshold is None else int(threshold)
    check_threshold(bits)
    return group_near_duplicates(read_hashes(images), bits)


def describe_duplicates(images: ImageList, copies: np.ndarray) -> tuple[str, list[str]]:
    """Say how many near duplicates there are, and list those that are in several classes.

    Empty where there are none.
    """
    _, numbers, sizes = np.unique(copies, return_inverse=True, return_counts=True)
    members: dict[int, list[int]] = {}
    for row in np.flatnonzero(sizes[numbers] > 1):
        members.setdefault(int(numbers[row]), []).append(int(row))
    if not members:
        return "", []

    labels = images.labels
    mixed = [rows for rows in members.values() if len({labels[row] for row in rows}) > 1]
    line = (
        f"near duplicates: {sum(map(len, members.values())):,} images in {len(members):,} groups "
        f"stay with their like ('filter --threshold' removes them, --threshold={NONE} divides them)"
    )
    return line, [_name(images, rows) for rows in mixed]


def _name(images: ImageList, rows: Iterable[int]) -> str:
    """Name the first image of each class among some."""
    firsts = {images.rows[row]["label"]: images.rows[row]["path"] for row in reversed([*rows])}
    return " and ".join(to_line(path) for path in sorted(firsts.values()))
