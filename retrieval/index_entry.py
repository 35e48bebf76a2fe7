"""What an index says of its images, in a file or in a database."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from metric_learning.reader.sets.boxes import Box


class Entry(NamedTuple):
    """One image of an index: its class where it is known, its box where photos have several."""

    path: str
    class_name: str | None
    box: Box | None


class Held(NamedTuple):
    """All images of an index: their rows (N,) int64, paths, boxes (N, 4) int32 or None, states.

    The states (N,) are of the files when they were embedded, see `fingerprint.STATE`; a size below
    0 says that nothing is known of one.
    """

    rows: np.ndarray
    paths: list[str]
    boxes: np.ndarray | None
    states: np.ndarray


class Addition(NamedTuple):
    """Images that go into an index: features (M, D) float, any scale, and what goes with them.

    The labels (M,) int64 are empty where the index has none; `boxes` (M, 4) int32 are None where
    all are whole photos. `former` (M,) int64 are the rows that hold the same images already, which
    these take the place of; -1 for new ones.
    """

    features: np.ndarray
    paths: list[str]
    labels: np.ndarray
    boxes: np.ndarray | None
    states: np.ndarray
    former: np.ndarray
