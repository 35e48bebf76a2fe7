"""Search indexes that grow and shrink: images are added and removed without a rebuild."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from metric_learning.common.fingerprint import STATE, changed_rows, take_snapshot
from metric_learning.common.log import log
from metric_learning.common.names import to_line
from metric_learning.engine.embed.embedder import Embedder
from metric_learning.engine.options.evaluation import EmbeddingOptions, open_index
from metric_learning.engine.search.lock import change_lock
from metric_learning.engine.search.search import AnyIndex, check_model, look_again
from metric_learning.reader import ImageSet
from metric_learning.reader.sets.boxes import Key, keys_of, parse_part
from metric_learning.reader.sets.listed import read_classes_of_csv
from metric_learning.reader.sets.plain_images import (
    CSV_LIST,
    join_image_sets,
    list_plain_images,
)
from metric_learning.retrieval.index_entry import Addition, Held
from metric_learning.retrieval.indexes import SearchIndex

ROUND = 1000  # images that are embedded and added at once
SAVE_EVERY = 60  # seconds between savings: what a kill may lose
MOST_REMOVED = 0.5  # share of the nodes of a graph, from which on a line suggests to build again


class Listed(NamedTuple):
    """Images that --add names: the class that a table says of each, and the folders among them."""

    image_set: ImageSet
    classes: list[str | None]
    roots: list[str]  # absolute paths


class Wanted(NamedTuple):
    """Images that are to be embedded, and per image its class, and the row that it has or -1."""

    image_set: ImageSet
    labels: np.ndarray  # (M,) int64, empty where the index has none
    former: np.ndarray  # (M,) int64


def update_index(
    work: EmbeddingOptions, add: Sequence[str], remove: Sequence[str], on_bad_image: str
) -> Path:
    """Remove images from a search index and add others; return its place.

    Images that it holds already are embedded again where their files have changed. The index is
    whole at every moment; after an interruption the same command goes on. One process at a time
    changes it, others wait. Raises ValueError where the index is of other weights, holds none of
    the images that are to be removed, or would be empty.
    """
    place = str(work.flags["index"])
    listed = list_additions(add) if add else None  # before anything is removed
    embedder = None if listed is None else Embedder.of(work)
    with change_lock(place):
        search_index = open_index(place, 1)
        if embedder is not None:
            for note in check_model(place, search_index, embedder):
                log(note)

        removed = remove_images(search_index, remove, place)
        if removed:
            log(f"{len(removed)} images removed")
        if listed is not None and embedder is not None:
            listed = without(listed, removed, remove)
            add_images(search_index, embedder, listed, on_bad_image)
        elif not removed:
            return Path(place)
        search_index.save(place)
    log(f"{search_index.kind} index of {len(search_index)} images in {place}")

    if isinstance(search_index, SearchIndex):
        num_marked = len(search_index.removed)
        if num_marked > MOST_REMOVED * search_index.vectors.ntotal:
            said = f"{num_marked} images are marked as removed"
            log(f"{said}: built again, {place} is smaller and faster")
    return Path(place)


def remove_images(search_index: AnyIndex, remove: Sequence[str], place: str) -> list[Key]:
    """Take images, and all below folders, out of an index; return which.

    A photo goes with all of its boxes, `PATH (x_1,y_1,x_2,y_2)` alone. The files need not be there
    any more. ValueError where a path is of no image, or all would go.
    """
    if not remove:
        return []

    held = search_index.held()
    keys = [*keys_of(held.paths, held.boxes)]
    chosen: set[int] = set()
    for path in remove:
        found = [n for n, (known, _) in enumerate(keys) if is_at(known, path)]
        part = None if found else parse_part(path)
        if part is not None:
            box = os.path.abspath(part[0]), part[1]
            found = [n for n, key in enumerate(keys) if key == box]
        if not found:
            raise ValueError(f"--remove={to_line(path)}: {place} holds no such image or folder")
        chosen.update(found)

    if len(chosen) == len(search_index):
        raise ValueError(f"--remove would leave no image in {place}: delete the index instead")
    search_index.remove(held.rows[sorted(chosen)])
    return [keys[n] for n in sorted(chosen)]


def without(listed: Listed, removed: Sequence[Key], remove: Sequence[str]) -> Listed:
    """Leave out images that are to be removed, be they in the index or not."""
    gone = set(removed)
    keys = [*keys_of(listed.image_set.paths, listed.image_set.boxes)]
    kept = [
        n
        for n, key in enumerate(keys)
        if key not in gone and not any(is_at(key[0], path) for path in remove)
    ]
    if len(kept) == len(keys):
        return listed
    images = listed.image_set.select(np.array(kept, np.int64))
    return Listed(images, [listed.classes[n] for n in kept], listed.roots)


def is_at(place: str, path: str) -> bool:
    """Whether an absolute path is that of an image, or below a folder."""
    target = os.path.abspath(path)
    return place == target or place.startswith(os.path.join(target, ""))


def add_images(
    search_index: AnyIndex,
    embedder: Embedder,
    listed: Listed,
    on_bad_image: str,
) -> None:
    """Embed images and add them.

    Of those that the index holds, the ones whose files have changed are embedded again.
    """
    place = str(embedder.work.flags["index"])
    wanted = choose_wanted(search_index, listed)
    image_set, labels, former = wanted
    if not len(image_set):
        log("every image is in the index already")
        return

    if (former >= 0).any():
        former = remove_repeated(search_index, wanted)
    num_before, saved = len(search_index), time.monotonic()
    broken: dict[str, str] = dict(search_index.metadata.get("broken") or {})
    for start in range(0, len(image_set), ROUND):
        rows = np.arange(start, min(start + ROUND, len(image_set)))
        images = image_set.select(rows)
        some = Wanted(images, labels[rows] if len(labels) else labels, former[rows])
        wrong = add_round(search_index, embedder, some, on_bad_image)
        names = {images.name_of(n) for n in range(len(images))}
        broken = {path: why for path, why in broken.items() if path not in names} | wrong
        search_index.metadata["broken"] = broken

        if not search_index.keeps_rows:
            replaced = [row for n, row in enumerate(former[rows]) if images.name_of(n) not in wrong]
            former = moved_up(former, np.array(replaced, np.int64))
        if time.monotonic() - saved > SAVE_EVERY:
            search_index.save(place)
            saved = time.monotonic()
            log(f"{rows[-1] + 1} of {len(image_set)} images added, saved")
    log(f"{len(image_set)} images embedded, {len(search_index) - num_before} of them new")


def moved_up(rows: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """Return rows of images when others are removed, (M,) int64; those of none, below 0, stay."""
    gone = np.sort(removed[removed >= 0])
    return np.where(rows < 0, rows, rows - np.searchsorted(gone, rows))


def list_additions(add: Sequence[str]) -> Listed:
    """List the images of files, folders and lists; errors are those of `list_plain_images`."""
    found = [list_plain_images(path) for path in add]
    classes: list[str | None] = []
    for path, images in zip(add, found, strict=True):
        is_table = Path(path).suffix.lower() == CSV_LIST
        named = read_classes_of_csv(Path(path)) if is_table else None
        classes += named or [None] * len(images)
    roots = [os.path.abspath(path) for path in add if Path(path).is_dir()]
    return Listed(join_image_sets(found, add), classes, roots)


def choose_wanted(search_index: AnyIndex, listed: Listed) -> Wanted:
    """Choose the images to embed: new ones, once, and those that have changed since."""
    held = search_index.held()
    keys = [*keys_of(listed.image_set.paths, listed.image_set.boxes)]
    number_of = {key: n for n, key in enumerate(keys_of(held.paths, held.boxes))}
    numbers = np.array([number_of.get(key, -1) for key in keys], np.int64)  # of what it holds

    first = {key: n for n, key in reversed([*enumerate(keys)])}
    known = np.array([n for n in first.values() if numbers[n] >= 0], np.int64)
    changed = set(known[is_changed(held, numbers[known])].tolist())
    rows = sorted(n for n in first.values() if n in changed or numbers[n] < 0)
    images = listed.image_set.select(np.array(rows, np.int64))
    former = [held.rows[numbers[n]] if numbers[n] >= 0 else -1 for n in rows]
    classes = [listed.classes[n] for n in rows]
    labels = label_images(search_index, images.paths, classes, listed.roots)
    return Wanted(images, labels, np.array(former, np.int64))


def remove_repeated(search_index: AnyIndex, wanted: Wanted) -> np.ndarray:
    """Remove all rows but one of images that the index holds several times and that have changed.

    Returns the rows (M,) int64 that hold the images now, see `Wanted`.
    """
    images, former = wanted.image_set, wanted.former
    changed = images.select(np.flatnonzero(former >= 0))
    keys = set(keys_of(changed.paths, changed.boxes))
    held, kept = search_index.held(), set(former.tolist())
    repeated = [
        row
        for row, key in zip(held.rows.tolist(), keys_of(held.paths, held.boxes), strict=True)
        if key in keys and row not in kept
    ]
    if not repeated:
        return former

    search_index.remove(np.array(repeated, np.int64))
    return former if search_index.keeps_rows else moved_up(former, np.array(repeated, np.int64))


def is_changed(held: Held, places: np.ndarray) -> np.ndarray:
    """Whether the files of some images that an index holds have changed since, (M,) bool."""
    paths = [held.paths[n] for n in places.tolist()]
    found = np.zeros(len(places), bool)
    found[changed_rows(*look_again(paths, held.states[places]))] = True
    return found


def add_round(
    search_index: AnyIndex, embedder: Embedder, wanted: Wanted, on_bad_image: str
) -> dict[str, str]:
    """Embed images and add those that can be read, in place of what they were; name -> error."""
    image_set, labels, former = wanted
    states = take_snapshot(image_set.paths).states
    broken: dict[str, str] = {}
    features = embedder.embed(image_set, broken=broken if on_bad_image == "skip" else None)
    for error in broken.values():
        log(f"{error}: left out")
    names = map(image_set.name_of, range(len(image_set)))
    good = np.array([n for n, name in enumerate(names) if name not in broken], np.int64)
    if not len(good):
        return broken

    readable = image_set.select(good)
    search_index.add(
        Addition(
            features[good],
            list(readable.paths),
            labels[good] if len(labels) else labels,
            readable.boxes,
            states[good].astype(STATE),
            former[good],
        )
    )
    return broken


def label_images(
    search_index: AnyIndex,
    paths: Sequence[str],
    classes: Sequence[str | None],
    roots: Sequence[str],
) -> np.ndarray:
    """Return the labels of images, (M,) int64; new classes are noted. Empty where there are none.

    The class of an image is what a table says, else by the names of its folders: that of the
    nearest folder that is named as a class of the index. Where there is none it is a new one: named
    as the folder right below one that is added, or as the image's own.
    """
    names = search_index.class_names
    if not search_index.has_labels:
        return np.empty(0, np.int64)
    label_of = {name: label for label, name in names.items()}
    fresh: list[str] = []
    labels = np.empty(len(paths), np.int64)

    for n, path in enumerate(paths):
        name = classes[n] or class_of_path(os.path.abspath(path), roots, label_of)
        if name not in label_of:
            label_of[name] = search_index.next_label
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
