"""Parquet files of a row per image, written a block of rows at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from metric_learning.common.optional import import_optional


def import_parquet() -> Any:
    """Import pyarrow with what reads and writes Parquet; ValueError where it is absent."""
    import_optional("pyarrow.parquet", "--parquet", "pyarrow")
    return import_optional("pyarrow", "--parquet")


def write_parquet(file: Path, blocks: Iterable[Mapping[str, Any]]) -> None:
    """Write blocks of B rows, each the columns by name: B texts, or arrays (B,) or (B, W).

    The rows of an array (B, W), of numbers or texts, become lists of W. A byte of a text that is
    not UTF-8, which Python has as a surrogate, is written as the escape of that.
    """
    arrow = import_parquet()
    writer = None

    try:
        for block in blocks:
            table = arrow.table({name: _column(arrow, rows) for name, rows in block.items()})
            if writer is None:
                writer = arrow.parquet.ParquetWriter(file, table.schema)
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()


def _column(arrow: Any, rows: Any) -> Any:
    """Return the rows of a column as Arrow has them."""
    if isinstance(rows, np.ndarray) and rows.ndim == 2:
        flat = _column(arrow, np.ascontiguousarray(rows).reshape(-1))
        return arrow.FixedSizeListArray.from_arrays(flat, rows.shape[1])
    if isinstance(rows, np.ndarray) and rows.dtype != object:
        return arrow.array(rows)
    texts = [text.encode("utf-8", "backslashreplace").decode() for text in rows]
    return arrow.array(texts, arrow.string())
