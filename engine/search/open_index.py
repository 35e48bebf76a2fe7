"""Search indexes with their model, for programs in Python."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from typing import Any

from metric_learning.common.log import log
from metric_learning.engine.embed.embedder import Embedder
from metric_learning.engine.options import evaluation
from metric_learning.engine.options.tables import CHANGED_DATA_POLICIES
from metric_learning.engine.search.search import check_index, find_neighbours
from metric_learning.engine.search.threshold import (
    Answer,
    answer_of,
    check_threshold,
    threshold_of,
)
from metric_learning.reader.sets.plain_images import is_one_image
from metric_learning.retrieval.indexes import SearchIndex
from metric_learning.retrieval.milvus import MilvusIndex


@dataclass(frozen=True)
class OpenIndex:
    """A search index, and the model that its images were embedded by."""

    search_index: SearchIndex | MilvusIndex
    embedder: Embedder
    threshold: float | None = None  # cosine below which a neighbour is no answer; None: always one

    def search(self, queries: Any, topk: int = 10) -> Answer | list[Answer]:
        """Find the nearest images.

        Args:
            queries: images as the embedder takes them.
            topk: neighbours of each.

        Returns:
            The neighbours of one query, nearest first, each with `rank` (from 1), `row` in the
            index, `cosine`, `path` and `class_name` (None where it is not known), and `box` where
            the images are parts of photos; of several queries, a list of such lists. Each list has
            an attribute `is_none`: True where the nearest image is below the `threshold`, so that
            the answer is "none"; its neighbours are there all the same.

        Raises:
            ValueError: `topk` is below 1 or above the number of images.
        """
        if not 1 <= topk <= len(self.search_index):
            raise ValueError(f"expected topk of 1 to {len(self.search_index)}, found {topk}")
        device = self.embedder.work.machine.device
        found = find_neighbours(self.search_index, self.embedder(queries), topk, device)
        answers = [answer_of(neighbours, self.threshold) for neighbours in found]
        return answers[0] if is_one_image(queries) else answers


def open_index(
    file: str | PathLike[str],
    embedder: Embedder,
    *,
    on_changed_data: str = "error",
    unknown_threshold: str | float | None = None,
) -> OpenIndex:
    """Open a search index that infer.py --index built with a model.

    Args:
        file: the index, or its place in Milvus.
        embedder: the model.
        on_changed_data: "accept" opens it although images have changed since: they are found by
            what they were.
        unknown_threshold: cosine below which the nearest image is no answer; "auto": that of the
            index; "off": none. None: that of the index, if it has one.

    Raises:
        ValueError: the index is of other weights, images have changed since, or it is asked for a
            threshold and holds none.
        OSError: it cannot be read.
    """
    if on_changed_data not in CHANGED_DATA_POLICIES:
        policies = " or ".join(CHANGED_DATA_POLICIES)
        raise ValueError(f"expected on_changed_data of {policies}, found {on_changed_data!r}")
    check_threshold(unknown_threshold)
    search_index = evaluation.open_index(str(file), 1)
    threshold = threshold_of(search_index, unknown_threshold)
    for note in check_index(str(file), search_index, embedder, on_changed_data=on_changed_data):
        log(note)
    return OpenIndex(search_index, embedder, threshold)
