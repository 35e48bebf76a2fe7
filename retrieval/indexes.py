"""Search indexes that are built once, kept in a file and asked again and again."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metric_learning.common.atomic import write_atomically
from metric_learning.common.fingerprint import Snapshot, read_snapshot
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
from metric_learning.retrieval.index_kinds import (
    INDEX_OPTIONS,
    build_vectors,
    choose_options,
    import_faiss,
    is_of_kind,
)
from metric_learning.retrieval.inputs import checked_rows
from metric_learning.retrieval.search import nearest
from metric_learning.retrieval.unit import unit_rows

GPU_KINDS = ("exact", "ivf")  # faiss has no HNSW for GPUs, and limits the code sizes of IVFPQ
MOST_NEIGHBOURS_ON_GPU = 2048
FORMAT = 1
SAME_COSINE = 1e-5  # rounding of float32 between two ways to compute a cosine


def is_metadata(value: Any) -> bool:
    """Whether a value of a file may be the metadata of an index."""
    return is_object(value) and is_object(value.get("flags", {}))


HEADER, VECTORS = "header.json", "index.faiss"
IMAGES = "images.npz"  # the snapshot of the images; indexes of earlier versions have none
HEADER_FIELDS = (
    Field("format", "a number", is_count),
    Field("kind", f"one of {', '.join(INDEX_OPTIONS)}", lambda value: value in INDEX_OPTIONS),
    Field("paths", "a list of paths", is_list_of(is_text)),
    Field("labels", "a list of labels", is_list_of(is_label)),
    Field("class_names", "names by label", lambda value: is_object(value, is_text)),
    Field("metadata", "an object", is_metadata),
)

Found = tuple[np.ndarray, np.ndarray]  # cosines and rows, (Q, k) each, as faiss returns them


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

    def box(self, row: int) -> list[int] | None:
        """Return the box of an image that is a part of a photo, or None."""
        boxes = self.metadata.get("boxes")
        return None if boxes is None else list(map(int, boxes[row]))

    def class_name(self, row: int) -> str | None:
        """Return the name of an image's class, its label where that has no name, or None."""
        if not len(self.labels):
            return None
        label = int(self.labels[row])
        return self.class_names.get(label, str(label))

    def search(
        self, features: np.ndarray, k: int, device: str | torch.device = "cpu"
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find k images similar to each query: an exact index the most similar, others nearly so.

        Args:
            features: (Q, D) float embeddings, any scale.
            k: neighbours per query.
            device: a CUDA device searches `exact` and `ivf` where faiss is built for GPUs and k is
                at most 2048; all else is searched on the CPU.

        Returns:
            rows (Q, k) int64, most similar first, and cosines (Q, k) float32, estimates in `ivfpq`.

        Raises:
            ValueError: k is below 1 or above the number of images, D is not the index's, or the
                index holds NaN.
        """
        if not 1 <= k <= len(self):
            raise ValueError(f"expected 1 to {len(self)} neighbours in this index, found k = {k}")
        queries = _unit(features)
        if queries.shape[1] != self.embedding_size:
            raise ValueError(
                f"the index holds embeddings of {self.embedding_size} dimensions, the queries have "
                f"{queries.shape[1]}"
            )
        cosines, rows = self._place(torch.device(device), k).search(queries, k)

        short = np.flatnonzero((rows < 0).any(1))
        if len(short):
            cosines[short], rows[short] = self._search_everything(queries[short], k)
        if not np.isfinite(cosines).all() or rows.min() < 0:
            raise ValueError("the index holds NaN or infinity: build it again")
        return rows, cosines

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

    def _search_everything(self, queries: np.ndarray, k: int) -> Found:
        """Search all images, where the lists or edges that were followed hold fewer than k."""
        faiss = import_faiss()
        if self.kind == "hnsw":
            found: Found = faiss.downcast_index(self.vectors.storage).search(queries, k)
            return found
        lists = faiss.extract_index_ivf(self.vectors)
        num_probed, lists.nprobe = lists.nprobe, lists.nlist
        try:
            found = self.vectors.search(queries, k)
            return found
        finally:
            lists.nprobe = num_probed

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
            "metadata": self.metadata,
        }
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(HEADER, json.dumps(header))
            archive.writestr(VECTORS, memoryview(import_faiss().serialize_index(self.vectors)))
            if self.snapshot is not None:
                archive.writestr(IMAGES, self.snapshot.to_bytes())


def build_index(
    features: np.ndarray,
    paths: Sequence[str],
    kind: str = "exact",
    *,
    labels: np.ndarray | Sequence[int] = (),
    class_names: Mapping[int, str] | None = None,
    metadata: Mapping[str, Any] | None = None,
    options: Mapping[str, int] | None = None,
) -> SearchIndex:
    """Build a search index of embeddings.

    exact: compares with every image. ivf: k-means cells, the nearest of which are searched (Sivic
    & Zisserman 2003, https://doi.org/10.1109/ICCV.2003.1238663). ivfpq: the same with product
    quantisation, 8 bits for D/m floats (Jegou et al. 2011, https://doi.org/10.1109/TPAMI.2010.57).
    hnsw: a graph of neighbours that is walked greedily (Malkov & Yashunin 2018,
    https://arxiv.org/abs/1603.09320). `measure_recall` measures how much the last three miss.

    Args:
        features: (N, D) float embeddings, any scale.
        paths: N image files.
        kind: a key of INDEX_OPTIONS.
        labels: (N,) integer, or empty.
        class_names: label -> name.
        metadata: how the embeddings were made; has to be JSON.
        options: parameters of the kind. nlist: cells; default 4 sqrt(N), at most N / 39. nprobe:
            cells that are searched; default nlist / 16, at least 8. m: bytes per image in `ivfpq`,
            which divide D, default about D / 8; edges per image in `hnsw`, default 32.
            ef_construction, ef_search: candidates kept in building (200) and in searching (128).

    Raises:
        ValueError: shapes that do not fit, embeddings that are not finite, faiss is absent, an
            unknown kind or parameter, or too few images for the kind.
    """
    unit = _unit(features)
    if len(unit) != len(paths) or len(labels) not in (0, len(unit)):
        raise ValueError(
            f"expected a path and either a label or none for each of {len(unit)} embeddings, found "
            f"{len(paths)} paths and {len(labels)} labels"
        )

    chosen = choose_options(kind, options or {}, *unit.shape)
    return SearchIndex(
        kind,
        list(paths),
        np.asarray(labels, np.int64),
        {int(label): name for label, name in (class_names or {}).items()},
        dict(metadata or {}),
        build_vectors(unit, kind, chosen),
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
            vectors = faiss.deserialize_index(np.frombuffer(archive.read(VECTORS), np.uint8))
            has_images = IMAGES in archive.namelist()
            snapshot = read_snapshot(archive.read(IMAGES)) if has_images else None
        names = {int(label): name for label, name in header["class_names"].items()}
        labels = np.asarray(header["labels"], np.int64)
        paths, kind, metadata = header["paths"], header["kind"], header["metadata"]
        num_images = len(paths)
        counts = {vectors.ntotal, num_images, num_images if snapshot is None else len(snapshot)}
        if header["format"] != FORMAT or len(counts) > 1:
            raise ValueError("another version, or parts of two indexes")
        boxes = np.asarray(metadata.get("boxes", np.empty((num_images, 4), np.int32)))
        if boxes.shape != (num_images, 4) or boxes.dtype.kind != "i":
            raise ValueError("boxes that do not fit")
        if len(labels) not in (0, num_images) or not is_of_kind(vectors, kind):
            raise ValueError("parts that do not fit")
    except OSError:
        raise
    except Exception as error:  # a damaged file can raise anything
        raise ValueError(
            f"{file} is damaged or no search index of this version: build it again"
        ) from error

    return SearchIndex(kind, paths, labels, names, metadata, vectors, snapshot)


def is_search_index(file: str | Path) -> bool:
    """Whether a file looks like a search index, by its table of contents."""
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return archive.namelist() in ([HEADER, VECTORS], [HEADER, VECTORS, IMAGES])


def measure_recall(
    index: SearchIndex,
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
    asking = _unit(queries)
    num_right = 0
    for i, query in enumerate(asking):
        others = found[i] if own_rows is None else found[i][found[i] != own_rows[i]][:k]
        cosines = _unit(np.asarray(gallery)[others]) @ query
        num_right += int((cosines >= exact[i, -1] - SAME_COSINE).sum())
    return num_right / rows.size


def _unit(features: np.ndarray) -> np.ndarray:
    """Return embeddings of length 1 as float32; a zero embedding stays zero."""
    return unit_rows(checked_rows(features, "embeddings")).numpy()
