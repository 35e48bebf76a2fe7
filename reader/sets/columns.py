"""Which columns of a table are meant: by their usual names, those of others, or given ones."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from metric_learning.reader.sets.text import strip

NEEDED = ("path", "label")
# What wildlife-datasets calls its individuals, and open-metric-learning its sequences.
OTHER_NAMES = {"label": "identity", "group": "sequence"}
NAMED = ("path", "label", "split", "group")  # by --path_column and so on
DELIMITERS = (",", ";", "\t")


def delimiter_of(text: str, given: Mapping[str, str | None]) -> str:
    """Return what stands between the cells of a table: a comma, or what its first line needs."""
    first = text.lstrip("\ufeff\r\n ").partition("\n")[0]
    wanted = {given.get(name) or name for name in NEEDED}
    for delimiter in DELIMITERS:
        cells = {strip(cell) for cell in next(csv.reader([first], delimiter=delimiter), [])}
        if wanted <= cells | {name for name, other in OTHER_NAMES.items() if other in cells}:
            return delimiter
    return DELIMITERS[0]


def usual_names(
    file: Path, columns: Sequence[str], given: Mapping[str, str | None]
) -> tuple[str, ...]:
    """Return what columns are called here; `given` has the table's names of those of NAMED.

    A column whose name another one takes is called otherwise, and is not used.

    Raises:
        ValueError: a given column is not there, two have one name, or path or label is missing.
    """
    shown = ",".join(columns)[:120]
    if len(set(columns)) < len(columns):
        raise ValueError(f"{file}:1: expected different columns, found '{shown}'")
    names = {name: theirs for name, theirs in given.items() if theirs is not None}
    for name, theirs in names.items():
        if theirs not in columns:
            raise ValueError(f"--{name}_column={theirs}: {file} has the columns '{shown}'")
    if len(set(names.values())) < len(names):
        found = ", ".join(f"--{name}_column={theirs}" for name, theirs in names.items())
        raise ValueError(f"expected different columns, found {found}")
    for name, other in OTHER_NAMES.items():
        if name not in names and name not in columns and other in columns:
            names[name] = other

    ours = {theirs: name for name, theirs in names.items()}
    renamed = tuple(
        ours.get(column, f"{column} (not used)" if column in names else column)
        for column in columns
    )
    if not set(NEEDED) <= set(renamed):
        raise ValueError(
            f"{file}:1: expected the names of the columns, path and label among them, found "
            f"'{shown}': --path_column and --label_column say what they are called there"
        )
    return renamed
