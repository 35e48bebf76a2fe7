"""Search indexes that a Milvus database holds: Milvus Lite in a file, or a cluster by its address.

An index is an alias of two collections: of the images, and of what is known of all of them, a JSON
text in parts. A new index gets new collections, and the alias moves at last, so that the name is
that of a whole index at every moment. An index that changes keeps its collections.
"""

from __future__ import annotations

import uuid
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from metric_learning.common.fingerprint import STATE
from metric_learning.reader.sets.boxes import WHOLE
from metric_learning.retrieval.index_entry import Addition, Entry, Held
from metric_learning.retrieval.milvus_client import (
    ABOUT,
    PREFIX,
    Place,
    collection_of,
    connect,
    is_ours,
    milvus_errors,
    move_alias,
    parse_place,
    prepare_place,
)
from metric_learning.retrieval.milvus_collections import (
    KINDS,
    UNKNOWN,
    box_of,
    create_collections,
    path_of,
    put_images,
    read_header,
    states_of,
    write_header,
)
from metric_learning.retrieval.unit import unit_queries

SEARCH_PARAMETERS = {"ef_search": "ef", "nprobe": "nprobe"}
# The most cells that Milvus makes. Its embedded edition makes 128, whatever it is asked for.
EVERY_CELL = 65536
QUERIES_AT_ONCE = 100
READ_AT_ONCE, REMOVED_AT_ONCE = 10_000, 1000  # images of one call
MOST_NEIGHBOURS = 16_384


@dataclass(eq=False)
class MilvusIndex:
    """Images in a Milvus database, searched by cosine; what `SearchIndex` is for files.

    Paths, labels, boxes and states stay in the database, and are asked for as they are needed. The
    row of an image is the number that it got; that of one that was removed is given to no other.
    """

    client: Any
    place: Place
    collection: str  # of the images
    kind: str
    options: dict[str, int]
    next_row: int  # of an image that is added
    num_images: int
    embedding_size: int
    has_labels: bool
    has_boxes: bool
    class_names: dict[int, str]
    metadata: dict[str, Any]
    num_parts: int = 0  # of the text of what is known of all images
    snapshot: None = None  # the files of all images are compared nowhere, those of answers are
    keeps_rows: ClassVar[bool] = True  # when others are removed

    def __len__(self) -> int:
        return self.num_images

    @property
    def depends_on(self) -> dict[str, Any]:
        """What the embeddings depend on beside the images; empty where it was not recorded."""
        found = self.metadata.get("depends_on")
        return found if isinstance(found, dict) else {}

    @property
    def next_label(self) -> int:
        """The label of a class that is new."""
        return 1 + max(self.class_names, default=-1)

    def classes(self) -> list[str]:
        """Return the names of the classes of the images."""
        return [*self.class_names.values()] if self.has_labels else []

    def num_of_class(self, name: str) -> int:
        """Return how many images are of a class."""
        return self._count(self._of_class(name))

    def _count(self, which: str = "") -> int:
        """Count images, all of them without a filter: Milvus Lite makes an object of each other."""
        with milvus_errors():
            found = self.client.query(
                self.collection,
                filter=which,
                output_fields=["count(*)"],
                consistency_level="Strong",
            )
        return int(found[0]["count(*)"])

    def _of_class(self, name: str) -> str:
        labels = [label for label, known in self.class_names.items() if known == name]
        return f"label in {labels}" if labels and self.has_labels else "row < 0"

    def entries(self, rows: np.ndarray) -> list[Entry]:
        """Return what is known of images, by their rows (M,); LookupError where there is none."""
        return [
            Entry(
                path_of(one),
                self._class_name(int(one["label"])),
                box_of(one) if self.has_boxes else None,
            )
            for one in self._of_rows(rows, ["path", "label", "box"])
        ]

    def states(self, rows: np.ndarray) -> np.ndarray:
        """Return the states of the files of images when they were embedded, (M,), see `Held`."""
        return states_of(self._of_rows(rows, ["state"]))

    def _of_rows(self, rows: np.ndarray, fields: list[str]) -> list[Mapping[str, Any]]:
        """Return fields of images by their rows (M,), in their order."""
        if not len(rows):
            return []
        with milvus_errors():
            found = self.client.query(
                self.collection, filter=f"row in {np.unique(rows).tolist()}", output_fields=fields
            )
        of_row = {int(one["row"]): one for one in found}
        if not set(rows.tolist()) <= of_row.keys():
            raise LookupError("the index has no such image any more")
        return [of_row[row] for row in rows.tolist()]

    def _class_name(self, label: int) -> str | None:
        return self.class_names.get(label, str(label)) if self.has_labels else None

    def search(
        self,
        features: np.ndarray,
        k: int,
        device: str | torch.device = "cpu",
        class_name: str | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find k images similar to each query, see `SearchIndex.search`; the device is Milvus's."""
        num_searched = len(self) if class_name is None else self.num_of_class(class_name)
        most = min(num_searched, MOST_NEIGHBOURS)
        if not 1 <= k <= most:
            raise ValueError(f"expected 1 to {most} neighbours in this index, found k = {k}")
        queries = unit_queries(features, self.embedding_size)

        given = {
            theirs: self.options[ours]
            for ours, theirs in SEARCH_PARAMETERS.items()
            if ours in self.options
        }
        if "ef" in given:
            given["ef"] = max(given["ef"], k)
        hits = self._ask(queries, k, given, class_name)
        if "nprobe" in given and any(len(found) < k for found in hits):
            hits = self._ask(queries, k, {"nprobe": EVERY_CELL}, class_name)
        if any(len(found) != k for found in hits):
            raise ValueError("Milvus returned too few neighbours: build the index again as exact")
        rows = np.array([[hit["row"] for hit in found] for found in hits], np.int64)
        cosines = np.array([[hit["distance"] for hit in found] for found in hits], np.float32)
        return rows.reshape(-1, k), cosines.reshape(-1, k)

    def _ask(
        self, queries: np.ndarray, k: int, parameters: Mapping[str, int], class_name: str | None
    ) -> list[Any]:
        """Return what Milvus finds for each query, which may be fewer than k images."""
        hits: list[Any] = []
        for start in range(0, len(queries), QUERIES_AT_ONCE):
            with milvus_errors():
                hits += self.client.search(
                    self.collection,
                    data=queries[start : start + QUERIES_AT_ONCE],
                    anns_field="vector",
                    limit=k,
                    filter="" if class_name is None else self._of_class(class_name),
                    search_params={"metric_type": "IP", "params": dict(parameters)},
                )
        return hits

    def held(self) -> Held:
        """Return all images, in the order of their rows."""
        numbers, sides = array("q"), array("i")
        paths: list[str] = []
        states = [np.empty(0, STATE)]
        with milvus_errors():
            for page in self._pages(["path", "box", "state"]):
                numbers.extend(int(one["row"]) for one in page)
                paths += map(path_of, page)
                sides.extend(side for one in page for side in box_of(one))
                states.append(states_of(page))

        rows, order = np.unique(np.array(numbers, np.int64), return_index=True)
        boxes = np.array(sides, np.int32).reshape(-1, len(WHOLE))[order]
        of_files = np.concatenate(states)[order]
        ordered = [paths[n] for n in order.tolist()]
        return Held(rows, ordered, boxes if self.has_boxes else None, of_files)

    def _pages(self, fields: list[str]) -> Iterator[Sequence[Mapping[str, Any]]]:
        """Yield fields of all images, some thousands of them at a time.

        They are asked for by their rows, which Milvus Lite looks up: for any other question it goes
        through all images, and makes objects of those that it finds, with their vectors.
        """
        for start in range(0, self.next_row, READ_AT_ONCE):
            rows = [*range(start, min(start + READ_AT_ONCE, self.next_row))]
            yield self.client.query(
                self.collection,
                filter=f"row in {rows}",
                output_fields=["row", *fields],
                consistency_level="Strong",
            )

    def remove(self, rows: np.ndarray) -> None:
        """Take images out, by their rows (M,) int64; others keep theirs."""
        with milvus_errors():
            for start in range(0, len(rows), REMOVED_AT_ONCE):
                some = rows[start : start + REMOVED_AT_ONCE].tolist()
                self.client.delete(self.collection, filter=f"row in {some}")
            self.client.flush(self.collection)
        self.num_images = self._count()

    def add(self, addition: Addition) -> None:
        """Write images, new ones under new rows, others in the place of what they were."""
        is_new = addition.former < 0
        rows = addition.former.copy()
        rows[is_new] = self.next_row + np.arange(is_new.sum())
        self.next_row += int(is_new.sum())
        self.has_boxes = self.has_boxes or addition.boxes is not None
        with milvus_errors():
            self._write_header()  # so that after an interruption no row is given again
            put_images(self.client, self.place, self.collection, addition, rows)
        self.num_images = self._count()

    def save(self, index: str) -> None:
        """Write what is known of all images; they themselves are there already."""
        assert parse_place(index) == self.place
        with milvus_errors():
            self._write_header()

    def _write_header(self) -> None:
        header = {
            "kind": self.kind,
            "options": self.options,
            "next_row": self.next_row,
            "dim": self.embedding_size,
            "has_labels": self.has_labels,
            "has_boxes": self.has_boxes,
            "class_names": self.class_names,
            "metadata": self.metadata,
        }
        self.num_parts = write_header(self.client, self.collection, header, self.num_parts)


def write_milvus_index(
    index: str,
    features: np.ndarray,
    paths: Sequence[str],
    kind: str,
    *,
    labels: np.ndarray | Sequence[int] = (),
    class_names: Mapping[int, str] | None = None,
    metadata: Mapping[str, Any] | None = None,
    options: Mapping[str, int] | None = None,
    boxes: np.ndarray | None = None,
    states: np.ndarray | None = None,
) -> MilvusIndex:
    """Write an index into a Milvus database in place of one of its name; see `build_index`.

    `states` (N,) are of the files, see `Held`; None: nothing is known of them.

    Raises:
        ValueError: Milvus has no such kind, a path is too long, or Milvus refuses something.
    """
    if kind not in KINDS:
        raise ValueError(f"expected --index_type of {', '.join(KINDS)} in Milvus, found {kind}")
    place = parse_place(index)
    client = prepare_place(place)
    num_images, dim = features.shape
    header = {
        "kind": kind,
        "options": dict(options or {}),
        "next_row": num_images,
        "dim": dim,
        "has_labels": bool(len(labels)),
        "has_boxes": boxes is not None,
        "class_names": {int(label): name for label, name in (class_names or {}).items()},
        "metadata": dict(metadata or {}),
    }
    states = np.repeat(UNKNOWN, num_images) if states is None else states
    nobody = np.full(num_images, -1, np.int64)
    labels = np.asarray(labels, np.int64)
    images = Addition(features, list(paths), labels, boxes, states, nobody)
    collection = f"{place.name}_{uuid.uuid4().hex[:8]}"

    with milvus_errors():
        create_collections(client, collection, header)
        put_images(client, place, collection, images, np.arange(num_images))
        move_alias(client, place, collection)
    client.close()
    return open_milvus_index(index)


def open_milvus_index(index: str) -> MilvusIndex:
    """Open an index in a Milvus database; ValueError where there is none, or it is damaged."""
    place = parse_place(index)
    if "://" not in place.database and not Path(place.database).exists():
        raise FileNotFoundError(f"{place.database}: no such database")
    client = connect(place)
    collection = collection_of(client, place)
    if collection is None or not is_ours(collection, place):
        raise ValueError(
            f"{PREFIX}{place.database} holds no index {place.name}: build it with infer.py "
            f"--index={index}"
        )

    with milvus_errors():
        client.load_collection(collection)
        client.load_collection(f"{collection}{ABOUT}")
        header, num_parts = read_header(client, collection, index)
    found = MilvusIndex(
        client,
        place,
        collection,
        header["kind"],
        header["options"],
        header["next_row"],
        0,
        header["dim"],
        header["has_labels"],
        header["has_boxes"],
        {int(label): name for label, name in header["class_names"].items()},
        header["metadata"],
        num_parts,
    )
    found.num_images = found._count()
    return found
