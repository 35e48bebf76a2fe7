"""Where a model fails: scores per class and super class, and the classes it takes for others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from metric_learning.common.atomic import write_csv
from metric_learning.common.names import to_line
from metric_learning.retrieval.scores import QueryScores

METRICS = ("recall@1", "r_precision", "map@r", "map")  # fractions; the rest are numbers
SCORES = (*METRICS, "mean_first_rank", "median_first_rank")
COLUMNS = ("class", "label", "super_class", "queries", *SCORES)
DEFAULT_COLUMNS = ("class", "queries", "recall@1", "r_precision", "map@r", "median_first_rank")


@dataclass(frozen=True)
class ClassRow:
    """The scores of the queries of a class, or of a super class."""

    name: str  # of the class
    label: int  # of the class
    super_class: str  # name of its super class; empty where there is none
    queries: int  # number of queries that count
    # the means of `recall@1`, `r_precision`, `map@r`, `map` as fractions (see
    # `retrieval.scores.score_ranks`), `mean_first_rank` and `median_first_rank` of the best
    # positive (one-based, ties counted against the query); empty where there is no query
    scores: dict[str, float]

    def cells(self) -> dict[str, str | float]:
        """The values of COLUMNS, without the scores where there are none."""
        values = self.name, self.label, self.super_class, self.queries
        return {**dict(zip(COLUMNS, values, strict=False)), **self.scores}


def class_table(
    scores: QueryScores,
    class_names: dict[int, str],
    super_classes: dict[int, str] | None = None,
    query_labels: np.ndarray | None = None,
) -> list[ClassRow]:
    """Average the scores of the queries of each class; a row per class, in label order.

    Args:
        scores: of Q queries, recall@1 among them.
        class_names: label -> name; a label without a name is shown as its number.
        super_classes: label -> name of its super class; classes it lacks have none.
        query_labels: (N,) integer, labels of all images that query; where given, classes none of
            whose images has a positive get a row too, with 0 queries and no scores.

    Raises:
        ValueError: the scores lack recall@1.
    """
    labels = scores.labels if query_labels is None else query_labels
    scored = _scores_by_label(scores, scores.labels)
    rows = []
    for label in np.unique(labels).tolist():
        name = class_names.get(label, str(label))
        super_class = (super_classes or {}).get(label, "")
        rows.append(ClassRow(name, label, super_class, *scored.get(label, (0, {}))))
    return rows


def super_class_table(scores: QueryScores, super_classes: dict[int, str]) -> list[ClassRow]:
    """Average the scores of the queries of each super class, every query counting the same.

    `super_classes` maps labels to names. A row per super class, by name; its label is its place.

    Raises:
        ValueError: the scores lack recall@1, or a class has no super class.
    """
    classes, which = np.unique(scores.labels, return_inverse=True)
    missing = [label for label in classes.tolist() if label not in super_classes]
    if missing:
        raise ValueError(
            f"expected a super class of every class, found none of {len(missing)} of "
            f"{len(classes)} classes, first of label {missing[0]}"
        )
    names, of_class = np.unique([super_classes[label] for label in classes], return_inverse=True)
    return [
        ClassRow(str(names[label]), label, "", *scored)
        for label, scored in _scores_by_label(scores, of_class[which]).items()
    ]


def confusions(neighbour_labels: np.ndarray, labels: np.ndarray) -> list[tuple[int, int, int]]:
    """Count which class the first neighbours of a class's queries are of, where it is another.

    Both arguments are labels (Q,). Returns (label of the queries, label found, number of queries),
    the most frequent first.

    Raises:
        ValueError: the two have different shapes.
    """
    neighbour_labels, labels = np.asarray(neighbour_labels), np.asarray(labels)
    if labels.ndim != 1 or neighbour_labels.shape != labels.shape:
        raise ValueError(
            "expected the label of one neighbour per query, found shapes "
            f"{neighbour_labels.shape} of neighbours and {labels.shape} of queries"
        )
    is_wrong = neighbour_labels != labels
    pairs = np.stack([labels[is_wrong], neighbour_labels[is_wrong]], axis=1)
    kinds, counts = np.unique(pairs, axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return [(*kinds[i].tolist(), int(counts[i])) for i in order]


def worst_first(rows: Sequence[ClassRow]) -> list[ClassRow]:
    """Sort rows by recall@1, then map@r, then label; classes without queries come last."""
    best = {"recall@1": math.inf, "map@r": math.inf}
    return sorted(rows, key=lambda row: (*((best | row.scores)[name] for name in best), row.label))


def format_table(
    rows: Sequence[ClassRow], columns: Sequence[str] = DEFAULT_COLUMNS, limit: int | None = 20
) -> str:
    """Lay out a table for the terminal, the worst classes first, fractions in percent.

    A line of headings, then at most `limit` rows (None: all), then how many were left out.

    Raises:
        ValueError: a column is not one of COLUMNS.
    """
    unknown = [column for column in columns if column not in COLUMNS]
    if unknown:
        raise ValueError(f"expected columns among {', '.join(COLUMNS)}, found {', '.join(unknown)}")

    shown = worst_first(rows)[:limit]
    cells = [list(columns)]
    cells += [[_text(column, row.cells().get(column)) for column in columns] for row in shown]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    is_text = [column in ("class", "super_class") for column in columns]
    lines = []
    for line in cells:
        padded = [
            cell.ljust(width) if left else cell.rjust(width)
            for cell, width, left in zip(line, widths, is_text, strict=True)
        ]
        lines.append("  ".join(padded).rstrip())

    if len(shown) < len(rows):
        lines.append(f"({len(shown)} of {len(rows)} shown, the worst first)")
    return "\n".join(lines)


def write_table(rows: Sequence[ClassRow], file: Path) -> None:
    """Write all columns of a table as CSV, in the order of its rows; no score is an empty cell."""
    write_csv(file, COLUMNS, (row.cells() for row in rows), line_end="\r\n")


def _scores_by_label(
    scores: QueryScores, labels: np.ndarray
) -> dict[int, tuple[int, dict[str, float]]]:
    """Number of queries and SCORES of each label of labels (Q,), in label order."""
    missing = [name for name in METRICS if name not in scores.columns]
    if missing:
        raise ValueError(
            f"expected scores with {', '.join(METRICS)}, found no {', '.join(missing)}: score the "
            "queries with 1 among the ks"
        )

    order = np.lexsort((scores.first_rank, labels))
    groups, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    columns = [scores.columns[name] for name in METRICS] + [scores.first_rank]
    means = [np.add.reduceat(column[order], starts) / counts for column in columns]
    ranks = scores.first_rank[order]  # ascending within a group
    medians = (ranks[starts + (counts - 1) // 2] + ranks[starts + counts // 2]) / 2

    lines = np.stack([*means, medians], axis=1).tolist()
    return {
        label: (count, dict(zip(SCORES, line, strict=True)))
        for label, count, line in zip(groups.tolist(), counts.tolist(), lines, strict=True)
    }


def _text(column: str, value: str | float | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{100 * value:.2f}" if column in METRICS else f"{value:.1f}"
    return to_line(str(value))
