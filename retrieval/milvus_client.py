"""Milvus databases: where they are, how they are reached, and which collections are ours."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from metric_learning.common.optional import import_optional

PREFIX = "milvus:"
ADDRESS = r"https?://[^/]+"  # of a server
EXPECTED = f"{PREFIX}FILE.db#NAME or {PREFIX}http://HOST:19530#NAME"
ABOUT = "_about"  # ends the name of the second collection
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
LOCK = "LOCK"  # of Milvus Lite, in its folder
TIMEOUT = 20  # seconds that a cluster has to answer its first call


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


def import_pymilvus() -> Any:
    """Import the client of Milvus; ValueError where it is not installed."""
    pymilvus = import_optional("pymilvus", "an index in Milvus", "pymilvus milvus-lite")
    # They log what they raise too, also where an alias is looked for that is not there.
    for name in ("pymilvus", "grpc", "milvus_lite"):
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
    try:
        with milvus_errors():
            return pymilvus.MilvusClient(place.database, timeout=TIMEOUT)
    except (OSError, RuntimeError, ValueError) as error:
        if place.is_file and _is_taken(Path(place.database) / LOCK):
            raise ValueError(
                f"{PREFIX}{place.database}: another process has it open, such as a search page: "
                "wait for it, or end it"
            ) from error

        words = " ".join(str(error).split())
        raise ValueError(f"{PREFIX}{place.database} cannot be opened: {words}") from error


def _is_taken(lock: Path) -> bool:
    """Whether a process holds the lock of a database of Milvus Lite."""
    try:
        with lock.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


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


def move_alias(client: Any, place: Place, collection: str) -> None:
    """Give an index its name, and drop those that had it, or were to get it in a killed build."""
    former = collection_of(client, place)
    move = client.create_alias if former is None else client.alter_alias
    move(collection_name=collection, alias=place.name)
    for name in client.list_collections():
        if is_ours(name, place) and not name.startswith(collection):
            client.drop_collection(name)
