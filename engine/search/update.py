"""Search indexes that grow and shrink: images are added and removed without a rebuild."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from metric_learning.common.fingerprint import STATE, changed_rows, take_snapshot
from metric_learning.common.locks import locked
from metric_learning.common.log import log
from metric_learning.common.names import to_line
from metric_learning.engine.embed.embedder import Embedder
from metric_learning.engine.options.evaluation import EmbeddingOptions, open_index
from metric_learning.engine.search.search import check_model
from metric_learning.reader import ImageSet
from metric_learning.reader.sets.plain_images import join_plain_images
from metric_learning.retrieval.indexes import SearchIndex

ROUND = 1000  # images that are embedded and added at once
SAVE_EVERY = 60  # seconds between savings: what a kill may lose
MOST_REMOVED = 0.5  # share of the nodes of a graph, from which on a line suggests to build again


def update_index(
    work: EmbeddingOptions, add: Sequence[str], remove: Sequence[str], on_bad_image: str
) -> Path:
    """Remove images from a search index and add others; return its file.

    Images that it holds already are embedded again where their files have changed. The file is
    whole at every moment; after an interruption the same command goes on. One process at a time
    changes it, others wait. Raises ValueError where the index is of other weights, holds none of
    the images that are to be removed, or would be empty.
    """
    file = Path(work.flags["index"])
    embedder = Embedder.of(work) if add else None
    with locked(file.with_name(f".{file.name}.lock"), log, f"{file} is being changed"):
        search_index = open_index(str(file), 1)
        assert isinstance(search_index, SearchIndex)  # what a database holds is refused before
        if "boxes" in search_index.metadata:
            raise ValueError(f"{file} is of parts of photos, by their boxes: build it again")
        if embedder is not None:
            for note in check_model(str(file), search_index, embedder):
                log(note)

        removed = remove_images(search_index, remove, str(file))
        if removed:
            log(f"{removed} images removed")
        if embedder is not None:
            add_images(search_index, embedder, add, remove, on_bad_image)
        elif removed == 0:
            return file
        search_index.save(file)
    log(f"{search_index.kind} index of {len(search_index)} images in {file}")

    num_marked = len(search_index.removed)
    if num_marked > MOST_REMOVED * search_index.vectors.ntotal:
        log(f"{num_marked} images are marked as removed: built again, {file} is smaller and faster")
    return file


def remove_images(search_index: SearchIndex, remove: Sequence[str], file: str) -> int:
    """Take images, and all below folders, out of an index; return how many.

    The files need not be there any more. ValueError where a path is of no image, or all would go.
    """
    places = [os.path.abspath(path) for path in search_index.paths] if remove else []
    rows: set[int] = set()
    for path in remove:
        found = [row for row, place in enumerate(places) if is_at(place, path)]
        if not found:
            raise ValueError(f"--remove={to_line(path)}: {file} holds no such image or folder")
        rows.update(found)
    if rows and len(rows) == len(search_index):
        raise ValueError(f"--remove would leave no image in {file}: delete the file instead")
    if rows:
        search_index.remove(np.array(sorted(rows), np.int64))
    return len(rows)


def is_at(place: str, path: str) -> bool:
    """Whether an absolute path is that of an image, or below a folder."""
    target = os.path.abspath(path)
    return place == target or place.startswith(os.path.join(target, ""))


def add_images(
    search_index: SearchIndex,
    embedder: Embedder,
    add: Sequence[str],
    remove: Sequence[str],
    on_bad_image: str,
) -> None:
    """Embed the images of files, folders and lists, and add them, but those that are removed.

    Of those that the index holds, the ones whose files have changed are embedded again.
    """
    file = Path(embedder.work.flags["index"])
    image_set = join_plain_images(add)
    image_set = image_set.select(wanted_rows(search_index, image_set.paths, remove))
    if not len(image_set):
        log("every image is in the index already")
        return
    labels = label_images(search_index, image_set.paths, add)

    num_before, saved = len(search_index), time.monotonic()
    broken: dict[str, str] = dict(search_index.metadata.get("broken") or {})
    for start in range(0, len(image_set), ROUND):
        rows = np.arange(start, min(start + ROUND, len(image_set)))
        wrong = add_round(
            search_index, embedder, image_set.select(rows), labels[rows], on_bad_image
        )
        broken = {path: why for path, why in broken.items() if path not in search_index.paths}
        search_index.metadata["broken"] = broken = broken | wrong
        if time.monotonic() - saved > SAVE_EVERY:
            search_index.save(file)
            saved = time.monotonic()
            log(f"{rows[-1] + 1} of {len(image_set)} images added, saved")
    log(f"{len(image_set)} images embedded, {len(search_index) - num_before} of them new")


def wanted_rows(
    search_index: SearchIndex, paths: Sequence[str], remove: Sequence[str]
) -> np.ndarray:
    """Return which images are to be embedded, (M,) int64: new ones, once, and changed ones."""
    row_of = {os.path.abspath(path): row for row, path in enumerate(search_index.paths)}
    places = [os.path.abspath(path) for path in paths]
    first = {place: row for row, place in reversed([*enumerate(places)])}
    known = [row for place, row in first.items() if place in row_of]
    assert search_index.snapshot is not None

    kept = search_index.snapshot.select(np.array([row_of[places[row]] for row in known], np.int64))
    found = take_snapshot([paths[row] for row in known], known=kept)
    changed = {known[row] for row in changed_rows(kept, found).tolist()}
    wanted = [
        row
        for place, row in first.items()
        if (row in changed or place not in row_of)
        and not any(is_at(place, path) for path in remove)
    ]
    return np.array(sorted(wanted), np.int64)


def add_round(
    search_index: SearchIndex,
    embedder: Embedder,
    image_set: ImageSet,
    labels: np.ndarray,
    on_bad_image: str,
) -> dict[str, str]:
    """Embed images and add those that can be read, in place of what they were; path -> error."""
    states = take_snapshot(image_set.paths).states
    broken: dict[str, str] = {}
    features = embedder.embed(image_set, broken=broken if on_bad_image == "skip" else None)
    for error in broken.values():
        log(f"{error}: left out")
    good = np.array([n for n, path in enumerate(image_set.paths) if path not in broken], np.int64)
    if not len(good):
        return broken

    places = {os.path.abspath(image_set.paths[n]) for n in good.tolist()}
    paths = [image_set.paths[n] for n in good.tolist()]
    chosen = labels[good] if len(search_index.labels) else np.empty(0, np.int64)
    former = [n for n, path in enumerate(search_index.paths) if os.path.abspath(path) in places]
    search_index.add(features[good], paths, chosen, states[good].astype(STATE))
    if former:
        search_index.remove(np.array(former, np.int64))
    return broken


def label_images(search_index: SearchIndex, paths: Sequence[str], add: Sequence[str]) -> np.ndarray:
    """Return the labels of images by the names of their folders, (M,) int64; new classes are noted.

    The class is that of the nearest folder that is named as a class of the index. Where there is
    none it is a new one: named as the folder right below one that is added, or as the image's own.
    """
    if not len(search_index.labels):
        return np.full(len(paths), -1, np.int64)
    names = search_index.class_names
    label_of = {name: label for label, name in names.items()}
    roots = [os.path.abspath(path) for path in add if Path(path).is_dir()]
    fresh: list[str] = []
    labels = np.empty(len(paths), np.int64)

    for n, path in enumerate(paths):
        name = class_of_path(os.path.abspath(path), roots, label_of)
        if name not in label_of:
            label_of[name] = 1 + max(names, default=int(search_index.labels.max()))
            names[label_of[name]] = name
            fresh.append(name)
        labels[n] = label_of[name]
    if fresh:
        log(f"{len(fresh)} new classes, the first {to_line(fresh[0])}")
    return labels


def class_of_path(place: str, roots: Iterable[str], known: dict[str, int]) -> str:
    """Return the name of the class of an image by its absolute path, see `label_images`."""
    folders = Path(place).parent.parts
    for name in reversed(folders):
        if name in known:
            return name
    for root in roots:
        if place.startswith(os.path.join(root, "")):
            below = Path(place).relative_to(root).parts
            return below[0] if len(below) > 1 else Path(root).name
    return folders[-1]
