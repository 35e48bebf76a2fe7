"""Parquet files of a row per image, written a block of rows at a time."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from metric_learning.common.optional import import_optional

Block = tuple[list[str], np.ndarray, list[str] | None, np.ndarray]


def import_parquet() -> Any:
    """Import pyarrow with what reads and writes Parquet; ValueError where it is absent."""
    import_optional("pyarrow.parquet", "--parquet", "pyarrow")
    return import_optional("pyarrow", "--parquet")


def write_parquet(file: Path, blocks: Iterable[Block], width: int, dtype: np.dtype) -> None:
    """Write blocks of rows: paths, labels (B,) int64, names of their classes, features (B, D).

    The columns are path, label, class_name and feature, a list of D numbers of a dtype, float16 or
    float32. Where names are None, there is neither label nor class_name. A byte of a path that is
    not UTF-8, which Python has as a surrogate, is written as the escape of that.
    """
    arrow = import_parquet()
    feature = arrow.list_(arrow.from_numpy_dtype(dtype), width)
    writer = None

    try:
        for paths, labels, names, features in blocks:
            texts = [path.encode("utf-8", "backslashreplace").decode() for path in paths]
            values = arrow.array(np.ascontiguousarray(features, dtype).reshape(-1))
            columns = {"path": arrow.array(texts, arrow.string())}
            if names is not None:
                columns["label"] = arrow.array(labels)
                columns["class_name"] = arrow.array(names, arrow.string())
            columns["feature"] = arrow.FixedSizeListArray.from_arrays(values, type=feature)
            table = arrow.table(columns)
            if writer is None:
                writer = arrow.parquet.ParquetWriter(file, table.schema)
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()
