"""Search indexes that are built once, kept in a file and asked again and again."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from metric_learning.common.atomic import write_atomically
from metric_learning.common.fingerprint import (
    Snapshot,
    read_snapshot,
    relative_paths,
)
from metric_learning.common.schema import (
    Field,
    check_fields,
    is_count,
    is_label,
    is_list_of,
    is_object,
    is_text,
    parse_json,
)
from metric_learning.common.text_files import check_regular
from metric_learning.reader.sets.boxes import WHOLE, Box, format_box
from metric_learning.retrieval.index_entry import Addition, Entry, Held
from metric_learning.retrieval.index_kinds import (
    INDEX_OPTIONS,
    Found,
    build_vectors,
    choose_options,
    import_faiss,
    is_of_kind,
    remove_vectors,
    search_everything,
    search_vectors,
)
from metric_learning.retrieval.inputs import check_shape
from metric_learning.retrieval.milvus import MilvusIndex
from metric_learning.retrieval.search import nearest
from metric_learning.retrieval.unit import unit_embeddings, unit_queries

GPU_KINDS = ("exact", "ivf")  # faiss has no HNSW for GPUs, and limits the code sizes of IVFPQ
MOST_NEIGHBOURS_ON_GPU = 2048
FORMAT = 1
BLOCK = 2**20  # bytes of a file that are read at once
SAME_COSINE = 1e-5  # rounding of float32 between two ways to compute a cosine


def is_metadata(value: Any) -> bool:
    """Whether a value of a file may be the metadata of an index."""
    return is_object(value) and is_object(value.get("flags", {}))


BOXES = "boxes"  # in the metadata of a file
HEADER, VECTORS = "header.json", "index.faiss"
IMAGES = "images.npz"  # the snapshot of the images; indexes of earlier versions have none
HEADER_FIELDS = (
    Field("format", "a number", is_count),
    Field("kind", f"one of {', '.join(INDEX_OPTIONS)}", lambda value: value in INDEX_OPTIONS),
    Field("paths", "a list of paths", is_list_of(is_text)),
    Field("labels", "a list of labels", is_list_of(is_label)),
    Field("class_names", "names by label", lambda value: is_object(value, is_text)),
    Field("metadata", "an object", is_metadata),
    Field("removed", "a list of numbers", is_list_of(is_count), is_needed=False),
)


@dataclass(eq=False)
class SearchIndex:
    """Images that can be searched by cosine similarity, made by `build_index`."""

    kind: str  # a key of INDEX_OPTIONS
    paths: list[str]  # N image files, in the order of the rows
    labels: np.ndarray  # (N,) int64; empty where they are not known
    class_names: dict[int, str]  # label -> name; may be empty
    metadata: dict[str, Any]  # how the embeddings were made, as JSON has it
    vectors: Any  # the faiss index of the unit embeddings, on the CPU
    snapshot: Snapshot | None = None  # of the images when they were embedded, where it is known
    # Numbers of the nodes of `hnsw` that are no images any more, (R,) int64 ascending
    removed: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    boxes: np.ndarray | None = None  # (N, 4) int32 where images are parts of photos
    keeps_rows: ClassVar[bool] = False  # those behind an image that is removed move up
    _on_gpu: dict[int, Any] = field(default_factory=dict, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def embedding_size(self) -> int:
        """Dimensions of the embeddings."""
        return int(self.vectors.d)

    @property
    def depends_on(self) -> dict[str, Any]:
        """What the embeddings depend on beside the images; empty where it was not recorded."""
        found = self.metadata.get("depends_on")
        return found if isinstance(found, dict) else {}

    @property
    def has_labels(self) -> bool:
        """Whether the classes of the images are known."""
        return len(self.labels) > 0

    @property
    def next_label(self) -> int:
        """The label of a class that is new."""
        return 1 + max([*self.class_names, int(self.labels.max(initial=-1))])

    def class_name(self, row: int) -> str | None:
        """Return the name of an image's class, its label where that has no name, or None."""
        if not len(self.labels):
            return None
        label = int(self.labels[row])
        return self.class_names.get(label, str(label))

    def entries(self, rows: np.ndarray) -> list[Entry]:
        """Return what is known of images, by their rows (M,); LookupError where there is none."""
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self):
            raise LookupError("the index has no such image any more")
        return [
            Entry(self.paths[row], self.class_name(row), self._box(row)) for row in rows.tolist()
        ]

    def _box(self, row: int) -> Box | None:
        if self.boxes is None:
            return None
        x_1, y_1, x_2, y_2 = self.boxes[row].tolist()
        return x_1, y_1, x_2, y_2

    def states(self, rows: np.ndarray) -> np.ndarray:
        """Return the states of the files of images when they were embedded, (M,), see `Held`."""
        assert self.snapshot is not None
        states: np.ndarray = self.snapshot.states[rows]
        return states

    def held(self) -> Held:
        """Return all images, in the order of their rows."""
        assert self.snapshot is not None
        return Held(np.arange(len(self)), self.paths, self.boxes, self.snapshot.states)

    def classes(self) -> list[str]:
        """Return the names of the classes of the images."""
        labels = np.unique(self.labels).tolist()
        return [self.class_names.get(label, str(label)) for label in labels]

    def num_of_class(self, name: str) -> int:
        """Return how many images are of a class."""
        return len(self.rows_of_class(name))

    def rows_of_class(self, name: str) -> np.ndarray:
        """Return the rows of the images of a class, (M,) int64."""
        of_name = [label for label, known in self.class_names.items() if known == name]
        of_name += [int(name)] if name.isdigit() and int(name) not in self.class_names else []
        return np.flatnonzero(np.isin(self.labels, of_name))

    def search(
        self,
        features: np.ndarray,
        k: int,
        device: str | torch.device = "cpu",
        class_name: str | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find k images similar to each query: an exact index the most similar, others nearly so.

        Args:
            features: (Q, D) float embeddings, any scale.
            k: neighbours per query.
            device: a CUDA device searches `exact` and `ivf` where faiss is built for GPUs and k is
                at most 2048; all else is searched on the CPU.
            class_name: the class whose images alone are searched, each of them; None: all.

        Returns:
            rows (Q, k) int64, most similar first, and cosines (Q, k) float32, estimates in `ivfpq`.

        Raises:
            ValueError: k is below 1 or above the number of images, D is not the index's, or the
                index holds NaN.
        """
        among = None if class_name is None else self.rows_of_class(class_name)
        num_searched = len(self) if among is None else len(among)
        if not 1 <= k <= num_searched:
            raise ValueError(
                f"expected 1 to {num_searched} neighbours in this index, found k = {k}"
            )
        queries = unit_queries(features, self.embedding_size)

        cosines, numbers = self._search(queries, k, torch.device(device), among)
        if not np.isfinite(cosines).all() or numbers.min() < 0:
            raise ValueError("the index holds NaN or infinity: build it again")
        rows = np.searchsorted(self._numbers, numbers) if len(self.removed) else numbers
        return rows, cosines

    def _search(
        self, queries: np.ndarray, k: int, device: torch.device, among: np.ndarray | None
    ) -> Found:
        """Return the cosines of neighbours, and their numbers in `vectors`."""
        if among is not None:
            numbers = self._numbers[among]
            return search_everything(self.vectors, self.kind, queries, k, numbers)
        vectors = self._place(device, k)
        cosines, numbers = search_vectors(vectors, queries, k, self.removed)

        # The lists or edges that were followed may hold fewer than k.
        short = np.flatnonzero((numbers < 0).any(1))
        if len(short):
            cosines[short], numbers[short] = search_everything(
                self.vectors, self.kind, queries[short], k, self._numbers
            )
        return cosines, numbers

    @cached_property
    def _numbers(self) -> np.ndarray:
        """The numbers that the images have in `vectors`, (N,) int64, in the order of the rows."""
        return np.setdiff1d(np.arange(self.vectors.ntotal), self.removed, assume_unique=True)

    def _place(self, device: torch.device, k: int) -> Any:
        """Return the faiss index on the device that can search it."""
        faiss = import_faiss()
        can_move = self.kind in GPU_KINDS and k <= MOST_NEIGHBOURS_ON_GPU
        if device.type != "cuda" or not can_move or not faiss.get_num_gpus():
            return self.vectors
        number = device.index or 0
        if number not in self._on_gpu:
            try:
                resources = faiss.StandardGpuResources()
                self._on_gpu[number] = faiss.index_cpu_to_gpu(resources, number, self.vectors)
            except RuntimeError:  # the GPU is too full: the CPU finds the same
                self._on_gpu[number] = self.vectors
        return self._on_gpu[number]

    def remove(self, rows: np.ndarray) -> None:
        """Take images out, by their rows (M,) int64; those behind them move up.

        A graph (`hnsw`) keeps them as nodes that no search returns.
        """
        assert self.snapshot is not None
        kept = np.setdiff1d(np.arange(len(self)), rows)
        if self.kind == "hnsw":
            self.removed = np.union1d(self.removed, self._numbers[rows])
        else:
            remove_vectors(self.vectors, self.kind, np.unique(rows))

        self.snapshot = self.snapshot.select(kept)
        self.paths = [self.paths[row] for row in kept.tolist()]
        self.labels = self.labels[kept] if len(self.labels) else self.labels
        self.boxes = None if self.boxes is None else self.boxes[kept]
        self._forget()

    def add(self, addition: Addition) -> None:
        """Add images behind those that are there, and remove what they take the place of."""
        assert self.snapshot is not None and len(addition.labels) in (0, len(addition.paths))
        boxes = self._boxes_with(addition)
        self.vectors.add(unit_embeddings(addition.features))
        self.labels = np.concatenate([self.labels, addition.labels]).astype(np.int64)

        names = [str(self.class_names.get(int(label), label)) for label in addition.labels]
        names = names or ["-1"] * len(addition.paths)
        if boxes is not None:  # as `label_names` has them
            some = boxes[len(self) :]
            names = [f"{n} ({format_box(box)})" for n, box in zip(names, some, strict=True)]
        texts = [*self.snapshot.labels, *names] if self.snapshot.labels else []
        states = np.concatenate([self.snapshot.states, addition.states])
        self.paths, self.boxes = [*self.paths, *addition.paths], boxes
        self.snapshot = Snapshot(relative_paths(self.paths), texts, states)
        self._forget()

        former = addition.former[addition.former >= 0]
        if len(former):
            self.remove(former)

    def _boxes_with(self, addition: Addition) -> np.ndarray | None:
        """Return the boxes with those of an addition; None where all are whole photos."""
        if self.boxes is None and addition.boxes is None:
            return None
        parts = [(self.boxes, len(self)), (addition.boxes, len(addition.paths))]
        return np.concatenate(
            [np.full((count, 4), WHOLE, np.int32) if b is None else b for b, count in parts]
        ).astype(np.int32)

    def _forget(self) -> None:
        """Drop what was derived of the vectors."""
        self._on_gpu.clear()
        self.__dict__.pop("_numbers", None)

    def save(self, file: str | Path) -> None:
        """Write the index with its paths, labels and metadata into one file, atomically."""
        write_atomically(Path(file), self._write)

    def _write(self, file: Path) -> None:
        header = {
            "format": FORMAT,
            "kind": self.kind,
            "paths": self.paths,
            "labels": self.labels.tolist(),
            "class_names": self.class_names,
            "metadata": self.metadata | self._boxes_as_metadata(),
            **({"removed": self.removed.tolist()} if len(self.removed) else {}),
        }

        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(HEADER, json.dumps(header))
            with archive.open(VECTORS, "w", force_zip64=True) as member:
                faiss = import_faiss()
                faiss.write_index(self.vectors, faiss.PyCallbackIOWriter(member.write))
            if self.snapshot is not None:
                archive.writestr(IMAGES, self.snapshot.to_bytes())

    def _boxes_as_metadata(self) -> dict[str, Any]:
        return {} if self.boxes is None else {BOXES: self.boxes.tolist()}


def build_index(
    features: np.ndarray,
    paths: Sequence[str],
    kind: str = "exact",
    *,
    labels: np.ndarray | Sequence[int] = (),
    class_names: Mapping[int, str] | None = None,
    metadata: Mapping[str, Any] | None = None,
    options: Mapping[str, int] | None = None,
    boxes: np.ndarray | None = None,
) -> SearchIndex:
    """Build a search index of embeddings.

    exact: compares with every image. ivf: k-means cells, the nearest of which are searched (Sivic
    & Zisserman 2003, https://doi.org/10.1109/ICCV.2003.1238663). ivfpq: the same with product
    quantisation, 8 bits for D/m floats (Jegou et al. 2011, https://doi.org/10.1109/TPAMI.2010.57).
    hnsw: a graph of neighbours that is walked greedily (Malkov & Yashunin 2018,
    https://arxiv.org/abs/1603.09320). `measure_recall` measures how much the last three miss.

    Args:
        features: (N, D) float embeddings, any scale; in files, `exact` reads them piece by piece.
        paths: N image files.
        kind: a key of INDEX_OPTIONS.
        labels: (N,) integer, or empty.
        class_names: label -> name.
        metadata: how the embeddings were made; has to be JSON.
        options: parameters of the kind. nlist: cells; default 4 sqrt(N), at most N / 39. nprobe:
            cells that are searched; default nlist / 16, at least 8. m: bytes per image in `ivfpq`,
            which divide D, default about D / 8; edges per image in `hnsw`, default 32.
            ef_construction, ef_search: candidates kept in building (200) and in searching (128).
        boxes: (N, 4) int32 where images are parts of photos, see `crop_box`.

    Raises:
        ValueError: shapes that do not fit, embeddings that are not finite, faiss is absent, an
            unknown kind or parameter, or too few images for the kind.
    """
    check_shape(features, "embeddings")
    check_numbers(len(features), len(paths), len(labels))
    chosen = choose_options(kind, options or {}, *features.shape)
    return SearchIndex(
        kind,
        list(paths),
        np.asarray(labels, np.int64),
        {int(label): name for label, name in (class_names or {}).items()},
        dict(metadata or {}),
        build_vectors(features, kind, chosen),
        boxes=boxes,
    )


def check_numbers(num_embeddings: int, num_paths: int, num_labels: int) -> None:
    """Raise ValueError where an index would have other numbers of things than of embeddings."""
    if num_embeddings != num_paths or num_labels not in (0, num_embeddings):
        raise ValueError(
            f"expected a path and either a label or none for each of {num_embeddings} embeddings, "
            f"found {num_paths} paths and {num_labels} labels"
        )


def load_search_index(file: str | Path) -> SearchIndex:
    """Read a search index; nothing in the file is run.

    Raises:
        ValueError: the file is damaged or no search index, or faiss is absent.
        OSError: it cannot be read.
    """
    faiss = import_faiss()
    check_regular(Path(file), str(file))
    try:
        with zipfile.ZipFile(file) as archive:
            if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
                raise ValueError("its parts are compressed")
            header = check_fields(parse_json(archive.read(HEADER), HEADER), HEADER_FIELDS, HEADER)
            with archive.open(VECTORS) as member:
                vectors = faiss.read_index(faiss.PyCallbackIOReader(member.read))
                while member.read(BLOCK):  # to its end, where the checksum is compared
                    pass
            has_images = IMAGES in archive.namelist()
            snapshot = read_snapshot(archive.read(IMAGES)) if has_images else None
        names = {int(label): name for label, name in header["class_names"].items()}
        labels = np.asarray(header["labels"], np.int64)
        paths, kind, metadata = header["paths"], header["kind"], header["metadata"]
        num_images = len(paths)
        removed = np.unique(np.asarray(header.get("removed", ()), np.int64))
        num_left = vectors.ntotal - len(removed)
        counts = {num_left, num_images, num_images if snapshot is None else len(snapshot)}
        if header["format"] != FORMAT or len(counts) > 1:
            raise ValueError("another version, or parts of two indexes")
        boxes = None
        if BOXES in metadata:
            sides = np.asarray(metadata.pop(BOXES))
            if sides.shape != (num_images, len(WHOLE)) or sides.dtype.kind != "i":
                raise ValueError("boxes that do not fit")
            boxes = sides.astype(np.int32)
        if len(labels) not in (0, num_images) or not is_of_kind(vectors, kind):
            raise ValueError("parts that do not fit")
        if len(removed) and (kind != "hnsw" or removed[-1] >= vectors.ntotal):
            raise ValueError("it lacks what no such index can lack")
    except OSError:
        raise
    except Exception as error:  # a damaged file can raise anything
        raise ValueError(
            f"{file} is damaged or no search index of this version: build it again"
        ) from error

    return SearchIndex(kind, paths, labels, names, metadata, vectors, snapshot, removed, boxes)


def is_search_index(file: str | Path) -> bool:
    """Whether a file looks like a search index, by its table of contents."""
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return archive.namelist() in ([HEADER, VECTORS], [HEADER, VECTORS, IMAGES])


def measure_recall(
    index: SearchIndex | MilvusIndex,
    queries: np.ndarray,
    k: int,
    gallery: np.ndarray,
    own_rows: np.ndarray | None = None,
    device: str | torch.device = "cpu",
) -> float:
    """Measure the share of the exact k nearest images that an index finds, a fraction.

    An image that is found counts where it is as similar as the k-th nearest, so that it does not
    matter which of several equal images is found. Arguments and errors are those of
    `retrieval.nearest`; the gallery, in the order of the index, is what it was made of.
    """
    rows, exact = nearest(queries, gallery, k, own_rows, device)
    found, _ = index.search(queries, k + (own_rows is not None), device)
    asking = unit_embeddings(queries)
    num_right = 0
    for i, query in enumerate(asking):
        others = found[i] if own_rows is None else found[i][found[i] != own_rows[i]][:k]
        cosines = unit_embeddings(gallery[others]) @ query
        num_right += int((cosines >= exact[i, -1] - SAME_COSINE).sum())
    return num_right / rows.size
