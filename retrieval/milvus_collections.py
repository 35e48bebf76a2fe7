"""The two collections of an index in Milvus: its images, and what is known of all of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from metric_learning.common.fingerprint import DIGEST_BYTES, STATE, TIMES
from metric_learning.common.names import from_line, to_cell
from metric_learning.common.schema import (
    Field,
    check_fields,
    is_count,
    is_object,
    is_text,
    parse_json,
)
from metric_learning.reader.sets.boxes import WHOLE, Box, format_box
from metric_learning.retrieval.index_entry import Addition
from metric_learning.retrieval.milvus_client import ABOUT, Place, import_pymilvus
from metric_learning.retrieval.unit import unit_embeddings

KINDS = {"exact": "FLAT", "ivf": "IVF_FLAT", "hnsw": "HNSW"}  # of Milvus
PARAMETERS = {"m": "M", "ef_construction": "efConstruction", "nlist": "nlist"}  # of building
ROWS_AT_ONCE = 2000
# Bytes of vectors after which Milvus Lite is asked to write them. It takes eleven times as many for
# that, and of itself waits for 128 MB. Four files of fewer than 50,000 rows it would merge.
FLUSH_BYTES = 2**25
PART, LONGEST_PATH = 60_000, 65_535  # bytes of a text that a field can hold
LONGEST_STATE, LONGEST_BOX = 200, 100
FORMAT = 2
UNKNOWN = np.array([(-1, 0, 0, [0] * DIGEST_BYTES)], STATE)  # of a file of which nothing is known
HEADER_FIELDS = (
    Field("kind", f"one of {', '.join(KINDS)}", lambda value: value in KINDS),
    Field("options", "an object", lambda value: is_object(value, is_count)),
    Field("next_row", "a number", is_count),
    Field("dim", "a number", is_count),
    Field("has_labels", "true or false", lambda value: isinstance(value, bool)),
    Field("has_boxes", "true or false", lambda value: isinstance(value, bool)),
    Field("class_names", "names by label", lambda value: is_object(value, is_text)),
    Field("metadata", "an object", is_object),
)


def create_collections(client: Any, collection: str, header: Mapping[str, Any]) -> None:
    """Create the collections of an index, that of the images empty, the other one whole."""
    types = import_pymilvus().DataType
    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("row", types.INT64, is_primary=True)
    schema.add_field("label", types.INT64)
    schema.add_field("path", types.VARCHAR, max_length=LONGEST_PATH)
    schema.add_field("box", types.VARCHAR, max_length=LONGEST_BOX)
    schema.add_field("state", types.VARCHAR, max_length=LONGEST_STATE)
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
    write_header(client, collection, header)


def write_header(
    client: Any, collection: str, header: Mapping[str, Any], former_parts: int = 0
) -> int:
    """Write what is known of all images, in one call; return in how many parts.

    Where it had more of them before, the rest are of blanks, which end no JSON text.
    """
    text = json.dumps({"format": FORMAT, **header})
    parts = [text[start : start + PART] for start in range(0, len(text), PART)]
    parts += [" "] * (former_parts - len(parts))
    client.upsert(
        f"{collection}{ABOUT}",
        [{"part": number, "text": part, "vector": [1.0, 0.0]} for number, part in enumerate(parts)],
    )
    client.flush(f"{collection}{ABOUT}")
    return len(parts)


def read_header(client: Any, collection: str, index: str) -> tuple[dict[str, Any], int]:
    """Read what `write_header` wrote, and of how many parts; ValueError where it is damaged."""
    found = client.query(
        f"{collection}{ABOUT}",
        filter="part >= 0",
        output_fields=["text"],
        consistency_level="Strong",
    )
    text = "".join(one["text"] for one in sorted(found, key=lambda one: int(one["part"])))
    what = f"the header of {index}"
    header = parse_json(text, what)
    if is_object(header) and header.get("format") != FORMAT:
        raise ValueError(f"{index} was built by an earlier version: build it again")
    return check_fields(header, HEADER_FIELDS, what), len(found)


def put_images(
    client: Any, place: Place, collection: str, addition: Addition, rows: np.ndarray
) -> None:
    """Write images into a collection under their rows (M,), in place of those that have them."""
    rows_of_flush = max(ROWS_AT_ONCE, FLUSH_BYTES // (4 * addition.features.shape[1]))
    unflushed = 0
    for start in range(0, len(rows), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        images = list(_images(addition, rows, part))
        # Who replaces nothing need not look for it.
        write = client.insert if (addition.former[part] < 0).all() else client.upsert
        write(collection, images)
        unflushed += len(images)
        if place.is_file and unflushed >= rows_of_flush:
            client.flush(collection)
            unflushed = 0
    client.flush(collection)


def _images(addition: Addition, rows: np.ndarray, part: slice) -> Iterator[dict[str, Any]]:
    """Yield the images of a part of an addition as Milvus takes them."""
    unit = unit_embeddings(addition.features[part])
    boxes = None if addition.boxes is None else addition.boxes[part]
    paths, states = addition.paths[part], addition.states[part]
    labels = addition.labels[part] if len(addition.labels) else np.full(len(unit), -1)

    for n, (row, path, label) in enumerate(
        zip(rows[part].tolist(), paths, labels.tolist(), strict=True)
    ):
        yield {
            "row": row,
            "label": label,
            "path": checked_path(path),
            "box": "" if boxes is None else format_box(boxes[n]),
            "state": state_to_text(states[n]),
            "vector": unit[n],
        }


def checked_path(path: str) -> str:
    """Return a path as a text that Milvus can hold; ValueError where it is too long."""
    text = to_cell(path)
    if len(text.encode("utf-8")) > LONGEST_PATH:
        raise ValueError(f"a path has more than {LONGEST_PATH} bytes: {text[:60]}...")
    return text


def path_of(found: Mapping[str, Any]) -> str:
    """Return the path of an image that was found."""
    return from_line(str(found["path"]))


def box_of(found: Mapping[str, Any]) -> Box:
    """Return the box of an image that was found, WHOLE where it has none."""
    sides = [int(side) for side in str(found["box"]).split(",") if side]
    x_1, y_1, x_2, y_2 = sides or WHOLE
    return x_1, y_1, x_2, y_2


def state_to_text(state: np.void) -> str:
    """Write the state of a file as a text: its size and times, and its digest."""
    return " ".join([*(str(state[name]) for name in TIMES), state["digest"].tobytes().hex()])


def states_of(found: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Return the states of images that were found, (M,) of STATE."""
    states = np.empty(len(found), STATE)
    for n, one in enumerate(found):
        *times, digest = str(one["state"]).split()
        states[n] = (*map(int, times), list(bytes.fromhex(digest)))
    return states
