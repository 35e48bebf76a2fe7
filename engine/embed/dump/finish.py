"""The end of a dump: its files are made whole, and take the place of those of a former one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from metric_learning.common.arrays import open_array
from metric_learning.common.atomic import sync, write_json
from metric_learning.common.download import checksum_of
from metric_learning.common.fingerprint import STATE, digest_of, relative_names
from metric_learning.common.log import log, versions
from metric_learning.common.names import to_line
from metric_learning.common.outputs import Kind
from metric_learning.common.schema import read_json
from metric_learning.engine.embed.dump.layout import (
    BOXES,
    FEATURES,
    FILES,
    LABELS,
    META,
    PARTIAL,
    PATHS,
    REPORT,
    Column,
    Shard,
    pieces_of,
)
from metric_learning.engine.embed.dump.partial import (
    DONE,
    LOCK,
    PLAN,
    STATES,
    Broken,
    Partial,
    WorthlessError,
)
from metric_learning.engine.embed.dump.plan import BLOCK
from metric_learning.engine.embed.dump.tables import write_tables
from metric_learning.reader import ImageSet
from metric_learning.reader.sets.boxes import format_box
from metric_learning.reader.sets.snapshots import label_names

FORMER = "former.json"  # meta.json of the dump that is being replaced
READABLE = "readable-"  # before the name of a file that holds the rows of readable images alone
SUFFIXES = (".npy", ".parquet", ".csv", ".tmp")
OF_PARTIAL = (PLAN, DONE, LOCK, STATES, META, FORMER)


def find_foreign(folder: Path) -> str | None:
    """Return the name of a file in a folder that no dump wrote there, or that was changed since."""
    names = sorted(path.name for path in folder.iterdir())
    if PARTIAL in names and (foreign := find_foreign_work(folder / PARTIAL)):
        return f"{PARTIAL}/{foreign}"
    if META not in names:
        expected = {PARTIAL, REPORT}
        for about in (META, FORMER):  # its files are taking their places
            if PARTIAL in names and (folder / PARTIAL / about).exists():
                expected |= files_of(read_json(folder / PARTIAL / about, about)).keys()
        return next((name for name in names if name not in expected), None)

    meta = read_json(folder / META, META)
    written = files_of(meta)
    for name in names:
        digest = written.get(name)
        is_changed = digest is not None and digest != checksum_of(folder / name, "sha256")
        if name not in (META, REPORT, PARTIAL) and (name not in written or is_changed):
            return name
    if FEATURES not in written:
        return None
    shape = open_array(folder / FEATURES, FEATURES).shape
    return None if shape == (meta["images"], meta["dimensions"]) else FEATURES


def find_foreign_work(folder: Path) -> str | None:
    """Return the name of a file in a folder of unfinished work that is not of such."""
    for path in folder.iterdir():
        name = path.name.removeprefix(READABLE)
        is_ours = name in (*OF_PARTIAL, PATHS, LABELS, BOXES) or path.suffix in SUFFIXES
        if not (is_ours or (name.startswith("done-") and path.suffix == ".jsonl")):
            return path.name
    return None


DUMP = Kind("a dump of features", find_foreign)
WORK = Kind("unfinished features", find_foreign_work)


def files_of(meta: Mapping[str, Any]) -> dict[str, str | None]:
    """Return the files of a dump and the checksums of some of them."""
    written = meta.get("files")
    if written is None:  # of an earlier version, which wrote labels for data sets alone
        has_labels = meta["flags"].get("images") is None
        written = dict.fromkeys(FILES if has_labels else FILES[:2])
    return dict(written)


def complete(partial: Partial, image_set: ImageSet, about: Mapping[str, Any]) -> dict[str, Any]:
    """Make the files of a dump whole, in the folder of its work, and return what meta.json says.

    The rows of unreadable images are left out. Raises ValueError where no image could be read.
    """
    if partial.is_complete:
        return dict(read_json(partial.folder / META, META))
    broken: Broken = [one for chunk in sorted(partial.done) for one in partial.done[chunk]]
    for _, _, error in broken:
        log(f"{error}: left out")
    if broken:
        log(f"warning: {len(broken)} of {len(image_set)} images are unreadable and left out")
    if len(broken) == len(image_set):
        raise WorthlessError(f"none of the {len(image_set)} images can be read")

    is_read = np.ones(len(image_set), bool)
    is_read[[number for number, _, _ in broken]] = False
    for column, shard in partial.files():
        if column.is_published and not is_read[shard.start : shard.stop].all():
            _leave_out(partial, column, shard, is_read)
    files: dict[str, str | None] = {
        shard.file(column.stem): None for column, shard in partial.files() if column.is_published
    }
    for name in write_tables(partial, image_set, is_read):
        is_text = name.endswith(".csv")
        files[name] = checksum_of(partial.folder / name, "sha256") if is_text else None
    files |= _write_texts(partial.folder, image_set, is_read)

    counts = {"images": int(is_read.sum()), "dimensions": partial.plan.columns[0].width}
    depends_on = {**about["depends_on"], "images": _digest(partial, image_set)}
    meta = {**counts, **about, "depends_on": depends_on}
    meta["broken"] = {path: error for _, path, error in broken}
    if len(partial.plan.shards) > 1:
        meta["shards"] = [
            [shard.file("features"), int(is_read[shard.start : shard.stop].sum())]
            for shard in partial.plan.shards
        ]
    meta |= {"files": files, "versions": versions()}
    write_json(partial.folder / META, meta)
    return meta


def _leave_out(partial: Partial, column: Column, shard: Shard, is_read: np.ndarray) -> None:
    """Write a file again without the rows of images that cannot be read."""
    kept = is_read[shard.start : shard.stop]
    name = f"{READABLE}{shard.file(column.stem)}"
    with (partial.folder / name).open("wb") as file:
        file.write(column.header(int(kept.sum())))
        for rows in pieces_of(shard.rows, BLOCK):
            file.write(partial.read(column, rows)[is_read[rows.start : rows.stop]].tobytes())
    sync(partial.folder / name)


def _write_texts(folder: Path, image_set: ImageSet, is_read: np.ndarray) -> dict[str, str | None]:
    """Write paths.txt, a line per image, see `names.to_line`, labels.txt and boxes.txt, if any.

    Returns the checksums of these.
    """
    lines: dict[str, Iterable[str]] = {PATHS: map(to_line, image_set.paths)}
    if image_set.class_names:
        lines[LABELS] = map(str, image_set.labels)
    if image_set.boxes is not None:
        lines[BOXES] = map(format_box, image_set.boxes)
    for name, texts in lines.items():
        with (folder / name).open("wb") as file:
            for text, is_kept in zip(texts, is_read, strict=True):
                if is_kept:
                    file.write(_encode(f"{text}\n"))
        sync(folder / name)
    return {name: checksum_of(folder / name, "sha256") for name in lines}


def _encode(text: str) -> bytes:
    """Return the bytes of a text, those of a file's name that are not UTF-8 as they are."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a lone surrogate that no file name has
        return text.encode("utf-8", "backslashreplace")


def _digest(partial: Partial, image_set: ImageSet) -> str:
    """Identify all images, be they readable or not, as `Snapshot.digest` does."""
    states = np.memmap(partial.folder / STATES, STATE, "r")
    names = image_set.paths if image_set.images is not None else relative_names(image_set.paths)
    digests = (
        np.ascontiguousarray(states["digest"][start : start + BLOCK]).tobytes()
        for start in range(0, len(states), BLOCK)
    )
    return digest_of(len(image_set), names, label_names(image_set), digests)


def take_places(folder: Path, meta: Mapping[str, Any]) -> None:
    """Move the files of a complete dump to where those of a former one were, meta.json last.

    However often it is broken off, the next call goes on with it.
    """
    partial = folder / PARTIAL
    if (folder / META).exists():
        os.replace(folder / META, partial / FORMER)
    if (partial / FORMER).exists():
        for name in files_of(read_json(partial / FORMER, FORMER)):
            is_new = name in meta["files"] and not _source(partial, name).exists()
            if name != META and not is_new:
                (folder / name).unlink(missing_ok=True)

    for name in meta["files"]:
        if _source(partial, name).exists():
            os.replace(_source(partial, name), folder / name)
    for path in partial.iterdir():
        if path.name not in (META, PLAN, LOCK):
            path.unlink()
    sync(folder)
    os.replace(partial / META, folder / META)
    sync(folder)
    shutil.rmtree(partial)


def _source(partial: Path, name: str) -> Path:
    """Return where a file of the dump is, before it takes its place."""
    readable = partial / f"{READABLE}{name}"
    return readable if readable.exists() else partial / name
