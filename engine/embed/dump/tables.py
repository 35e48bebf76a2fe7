"""A dump as tables that other programs read: Parquet, and CSV of the best classes of each image."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import Any

import numpy as np

from metric_learning.common.atomic import sync
from metric_learning.common.names import to_cell
from metric_learning.common.parquet import write_parquet
from metric_learning.engine.embed.dump.layout import Shard, pieces_of
from metric_learning.engine.embed.dump.partial import Partial
from metric_learning.engine.embed.dump.plan import BLOCK, CLASSES, SCORES
from metric_learning.engine.embed.dump.precision import to_float32
from metric_learning.reader import ImageSet
from metric_learning.reader.sets.boxes import BOX_COLUMNS

Rows = tuple[np.ndarray, dict[str, np.ndarray]]  # numbers of images (B,), their rows by column


def write_tables(partial: Partial, image_set: ImageSet, is_read: np.ndarray) -> list[str]:
    """Write the tables of each shard into the folder of the work, and return their names."""
    written = []
    for shard in partial.plan.shards:
        if partial.plan.num_scores:
            written.append(_write_scores(partial, image_set, shard, is_read))
        if partial.plan.parquet:
            written.append(shard.file("features", ".parquet"))
            blocks = _parquet_blocks(partial, image_set, shard, is_read)
            write_parquet(partial.folder / written[-1], blocks)
            sync(partial.folder / written[-1])
    return written


def _blocks(partial: Partial, shard: Shard, is_read: np.ndarray, stems: set[str]) -> Iterator[Rows]:
    """Yield some columns of the readable images of a shard, a block of rows at a time."""
    columns = [column for column in partial.plan.columns if column.stem in stems]
    for rows in pieces_of(shard.rows, BLOCK):
        kept = is_read[rows.start : rows.stop]
        values = {column.stem: partial.read(column, rows)[kept] for column in columns}
        yield np.array(rows)[kept], values


def _write_scores(partial: Partial, image_set: ImageSet, shard: Shard, is_read: np.ndarray) -> str:
    """Write a line per image: its path and box, its best classes by name, and their scores."""
    name, plan, boxes = shard.file(SCORES, ".csv"), partial.plan, image_set.boxes
    class_names = [to_cell(each) for each in plan.class_names]
    best = range(1, plan.num_scores + 1)
    header = ["path", *(() if boxes is None else BOX_COLUMNS)]
    header += [f"{what}_{number}" for number in best for what in ("class", "score")]

    with (partial.folder / name).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        for numbers, values in _blocks(partial, shard, is_read, {SCORES, CLASSES}):
            found = zip(values[CLASSES].tolist(), values[SCORES].tolist(), strict=True)
            for number, (classes, scores) in zip(numbers.tolist(), found, strict=True):
                cells = [to_cell(image_set.paths[number])]
                cells += () if boxes is None else boxes[number].tolist()
                for class_, score in zip(classes, scores, strict=True):
                    cells += class_names[class_], f"{score:.6f}"
                writer.writerow(cells)
    sync(partial.folder / name)
    return name


def _parquet_blocks(
    partial: Partial, image_set: ImageSet, shard: Shard, is_read: np.ndarray
) -> Iterator[dict[str, Any]]:
    """Yield the columns of a Parquet file; features of int8 are float32 there."""
    class_names = np.array(partial.plan.class_names, object)
    stems = {"features", "scales", SCORES, CLASSES}
    for numbers, values in _blocks(partial, shard, is_read, stems):
        features = values["features"]
        if "scales" in values:
            features = to_float32(features, values["scales"])

        columns: dict[str, Any] = {"path": [image_set.paths[number] for number in numbers]}
        if image_set.boxes is not None:
            columns["box"] = image_set.boxes[numbers]
        if image_set.class_names:
            columns["label"] = image_set.labels[numbers]
            columns["class_name"] = [image_set.class_names[n] for n in columns["label"].tolist()]
        columns["feature"] = features
        if SCORES in values:
            columns |= {"classes": class_names[values[CLASSES]], "scores": values[SCORES]}
        yield columns
