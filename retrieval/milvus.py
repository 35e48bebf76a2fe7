"""Search indexes that a Milvus database holds: Milvus Lite in a file, or a cluster by its address.

An index is an alias of two collections: of the images, and of what is known of all of them, a JSON
text in parts. A new index gets new collections, and the alias moves at last, so that the name is
that of a whole index at every moment.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from metric_learning.common.names import from_line, to_cell
from metric_learning.common.optional import import_optional
from metric_learning.common.schema import (
    Field,
    check_fields,
    is_count,
    is_object,
    is_text,
    parse_json,
)
from metric_learning.retrieval.unit import unit_embeddings, unit_queries

PREFIX = "milvus:"
ADDRESS = r"https?://[^/]+"  # of a server
EXPECTED = f"{PREFIX}FILE.db#NAME or {PREFIX}http://HOST:19530#NAME"
ABOUT = "_about"  # ends the name of the second collection
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
KINDS = {"exact": "FLAT", "ivf": "IVF_FLAT", "hnsw": "HNSW"}  # of Milvus
PARAMETERS = {"m": "M", "ef_construction": "efConstruction", "nlist": "nlist"}  # of building
SEARCH_PARAMETERS = {"ef_search": "ef", "nprobe": "nprobe"}
# The most cells that Milvus makes. Its embedded edition makes 128, whatever it is asked for.
EVERY_CELL = 65536
ROWS_AT_ONCE, QUERIES_AT_ONCE = 2000, 100
PART, LONGEST_PATH = 60_000, 65_535  # bytes of a text that a field can hold
MOST_NEIGHBOURS = 16_384
TIMEOUT = 20  # seconds that a cluster has to answer its first call
HEADER_FIELDS = (
    Field("kind", f"one of {', '.join(KINDS)}", lambda value: value in KINDS),
    Field("options", "an object", lambda value: is_object(value, is_count)),
    Field("images", "a number", is_count),
    Field("dim", "a number", is_count),
    Field("has_labels", "true or false", lambda value: isinstance(value, bool)),
    Field("class_names", "names by label", lambda value: is_object(value, is_text)),
    Field("metadata", "an object", is_object),
)


class Place(NamedTuple):
    """Where an index is: the file or address of a database, and its name there."""

    database: str
    name: str

    @property
    def is_file(self) -> bool:
        """Whether the database is a file, and no server's."""
        return not re.match(ADDRESS, self.database)


def is_milvus(index: str) -> bool:
    """Whether --index names a place in a Milvus database, and no file."""
    return index.startswith(PREFIX)


def parse_place(index: str) -> Place:
    """Parse `milvus:FILE.db#NAME` or `milvus:http://HOST:PORT#NAME`; ValueError for others."""
    database, _, name = index.removeprefix(PREFIX).rpartition("#")
    place = Place(database, name)
    if place.is_file and not database.endswith(".db"):
        raise ValueError(f"--index={index}: expected {EXPECTED}")
    if not NAME.fullmatch(name):
        raise ValueError(
            f"--index={index}: expected a name of letters, digits and _ behind #, found {name!r}"
        )
    return place


@dataclass(eq=False)
class MilvusIndex:
    """Images in a Milvus database, searched by cosine; what `SearchIndex` is for files.

    Paths and labels stay in the database, and are asked for as they are needed.
    """

    client: Any
    name: str
    kind: str
    options: dict[str, int]
    num_images: int
    embedding_size: int
    has_labels: bool
    class_names: dict[int, str]
    metadata: dict[str, Any]
    snapshot: None = None  # the files of the images are not compared

    def __len__(self) -> int:
        return self.num_images

    @property
    def depends_on(self) -> dict[str, Any]:
        """What the embeddings depend on beside the images; empty where it was not recorded."""
        found = self.metadata.get("depends_on")
        return found if isinstance(found, dict) else {}

    def classes(self) -> list[str]:
        """Return the names of the classes of the images."""
        return [*self.class_names.values()] if self.has_labels else []

    def num_of_class(self, name: str) -> int:
        """Return how many images are of a class."""
        with milvus_errors():
            found = self.client.query(
                self.name, filter=self._of_class(name), output_fields=["count(*)"]
            )
        return int(found[0]["count(*)"])

    def _of_class(self, name: str) -> str:
        labels = [label for label, known in self.class_names.items() if known == name]
        return f"label in {labels}" if labels and self.has_labels else "row < 0"

    def entries(self, rows: np.ndarray) -> list[tuple[str, str | None]]:
        """Return the path and the name of the class of images, by their rows (M,)."""
        if not len(rows):
            return []
        with milvus_errors():
            found = self.client.query(
                self.name, filter=f"row in {rows.tolist()}", output_fields=["path", "label"]
            )
        of_row = {int(one["row"]): one for one in found}
        return [
            (from_line(of_row[row]["path"]), self._class_name(int(of_row[row]["label"])))
            for row in rows.tolist()
        ]

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
                    self.name,
                    data=queries[start : start + QUERIES_AT_ONCE],
                    anns_field="vector",
                    limit=k,
                    filter="" if class_name is None else self._of_class(class_name),
                    search_params={"metric_type": "IP", "params": dict(parameters)},
                )
        return hits


def import_pymilvus() -> Any:
    """Import the client of Milvus; ValueError where it is not installed."""
    pymilvus = import_optional("pymilvus", "an index in Milvus", "pymilvus milvus-lite")
    # They log what they raise too, also where an alias is looked for that is not there.
    for name in ("pymilvus", "grpc"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return pymilvus


@contextlib.contextmanager
def milvus_errors() -> Iterator[None]:
    """Make a ValueError of one line of what Milvus refuses, or does not answer."""
    exceptions = import_optional(
        "pymilvus.exceptions", "an index in Milvus", "pymilvus[milvus_lite]"
    )
    try:
        yield
    except exceptions.MilvusException as error:
        words = " ".join(str(error.message or error).split())
        raise ValueError(f"Milvus: {words[:300]}") from error


def connect(place: Place) -> Any:
    """Open a database; ValueError where it cannot be reached, or another process holds its file."""
    pymilvus = import_pymilvus()
    if "://" not in place.database:
        import_optional("milvus_lite", "an index in a file of Milvus", "milvus-lite")
        Path(place.database).absolute().parent.mkdir(parents=True, exist_ok=True)
    with milvus_errors():
        try:
            return pymilvus.MilvusClient(place.database, timeout=TIMEOUT)
        except (OSError, RuntimeError) as error:
            words = " ".join(str(error).split())
            raise ValueError(f"{PREFIX}{place.database} cannot be opened: {words}") from error


def prepare_place(place: Place) -> Any:
    """Open a database that an index is to be written to; ValueError where the name is another's."""
    client = connect(place)
    with milvus_errors():
        if place.name in client.list_collections() or (
            (now := collection_of(client, place)) and not is_ours(now, place)
        ):
            raise ValueError(
                f"{PREFIX}{place.database} holds a collection {place.name}, which is not an index "
                "of this project, so nothing is replaced: choose another name"
            )
    return client


def collection_of(client: Any, place: Place) -> str | None:
    """Return the collection of the images of an index, or None where there is no such index."""
    pymilvus = import_pymilvus()
    try:
        return str(client.describe_alias(place.name)["collection_name"])
    except pymilvus.MilvusException:
        return None


def is_ours(collection: str, place: Place) -> bool:
    """Whether a collection is called as those of an index that this project wrote."""
    return bool(re.fullmatch(rf"{place.name}_[0-9a-f]{{8}}({ABOUT})?", collection))


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
) -> MilvusIndex:
    """Write an index into a Milvus database in place of one of its name; see `build_index`.

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
        "images": num_images,
        "dim": dim,
        "has_labels": bool(len(labels)),
        "class_names": {int(label): name for label, name in (class_names or {}).items()},
        "metadata": dict(metadata or {}),
    }
    labels = np.asarray(labels, np.int64) if len(labels) else np.full(num_images, -1, np.int64)
    collection = f"{place.name}_{uuid.uuid4().hex[:8]}"

    with milvus_errors():
        create_collections(client, collection, header)
        insert_images(client, collection, features, paths, labels)
        move_alias(client, place, collection)
    client.close()
    return open_milvus_index(index)


def create_collections(client: Any, collection: str, header: Mapping[str, Any]) -> None:
    """Create the collections of an index, that of the images empty, the other one whole."""
    types = import_pymilvus().DataType
    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("row", types.INT64, is_primary=True)
    schema.add_field("label", types.INT64)
    schema.add_field("path", types.VARCHAR, max_length=LONGEST_PATH)
    schema.add_field("vector", types.FLOAT_VECTOR, dim=header["dim"])
    built = {
        theirs: header["options"][ours]
        for ours, theirs in PARAMETERS.items()
        if ours in header["options"]
    }
    how = client.prepare_index_params()
    how.add_index("vector", index_type=KINDS[header["kind"]], metric_type="IP", params=built)
    client.create_collection(collection, schema=schema, index_params=how)

    about = client.create_schema(auto_id=False, enable_dynamic_field=False)
    about.add_field("part", types.INT64, is_primary=True)
    about.add_field("text", types.VARCHAR, max_length=LONGEST_PATH)
    about.add_field("vector", types.FLOAT_VECTOR, dim=2)  # without one there is no collection
    how = client.prepare_index_params()
    how.add_index("vector", index_type="FLAT", metric_type="IP")
    client.create_collection(f"{collection}{ABOUT}", schema=about, index_params=how)
    text = json.dumps(header)
    parts = [text[start : start + PART] for start in range(0, len(text), PART)]
    client.insert(
        f"{collection}{ABOUT}",
        [{"part": number, "text": part, "vector": [1.0, 0.0]} for number, part in enumerate(parts)],
    )
    client.flush(f"{collection}{ABOUT}")


def insert_images(
    client: Any, collection: str, features: np.ndarray, paths: Sequence[str], labels: np.ndarray
) -> None:
    """Insert embeddings (N, D), paths and labels (N,) into a collection that is empty."""
    for start in range(0, len(paths), ROWS_AT_ONCE):
        unit = unit_embeddings(features[start : start + ROWS_AT_ONCE])
        columns = zip(
            range(start, start + len(unit)),
            unit,
            paths[start : start + ROWS_AT_ONCE],
            labels[start : start + ROWS_AT_ONCE].tolist(),
            strict=True,
        )
        images = [
            {"row": row, "vector": vector, "path": checked_path(path), "label": label}
            for row, vector, path, label in columns
        ]
        client.insert(collection, images)

    client.flush(collection)


def move_alias(client: Any, place: Place, collection: str) -> None:
    """Give an index its name, and drop those that had it, or were to get it in a killed build."""
    former = collection_of(client, place)
    move = client.create_alias if former is None else client.alter_alias
    move(collection_name=collection, alias=place.name)
    for name in client.list_collections():
        if is_ours(name, place) and not name.startswith(collection):
            client.drop_collection(name)


def checked_path(path: str) -> str:
    """Return a path as a text that Milvus can hold; ValueError where it is too long."""
    text = to_cell(path)
    if len(text.encode("utf-8")) > LONGEST_PATH:
        raise ValueError(f"a path has more than {LONGEST_PATH} bytes: {text[:60]}...")
    return text


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
        found = client.query(f"{collection}{ABOUT}", filter="part >= 0", output_fields=["text"])
    text = "".join(one["text"] for one in sorted(found, key=lambda one: int(one["part"])))
    what = f"the header of {index}"
    header = check_fields(parse_json(text, what), HEADER_FIELDS, what)
    names = {int(label): name for label, name in header["class_names"].items()}
    return MilvusIndex(
        client,
        place.name,
        header["kind"],
        header["options"],
        header["images"],
        header["dim"],
        header["has_labels"],
        names,
        header["metadata"],
    )
