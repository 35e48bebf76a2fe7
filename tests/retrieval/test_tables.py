"""Tables per class against a loop over the queries."""

import csv
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from metric_learning.retrieval import score_queries
from metric_learning.retrieval.tables import (
    COLUMNS,
    METRICS,
    SCORES,
    ClassRow,
    class_table,
    confusions,
    format_table,
    super_class_table,
    write_table,
)

NAMES = {3: "bicycle", 5: "chair, with arms", 8: 'sofa "Nord"', 9: "tür"}
SUPER_CLASSES = {3: "vehicles", 5: "furniture", 8: "furniture"}


@pytest.fixture(scope="module")
def labels():
    """60 images of three classes and one of a class of its own."""
    rng = np.random.default_rng(0)
    return rng.permutation([3] * 11 + [5] * 30 + [8] * 19 + [9])


@pytest.fixture(scope="module")
def scores(labels):
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(10, 4))
    return score_queries(centres[labels] + rng.normal(size=(len(labels), 4)), labels, (1, 10))


def naive(scores, is_in_group):
    """SCORES of the queries of a group, one query after the other."""
    queries = [query for query in range(len(scores)) if is_in_group(scores.labels[query])]
    ranks = [int(scores.first_rank[query]) for query in queries]
    found = {}
    for name in METRICS:
        found[name] = sum(scores.columns[name][query] for query in queries) / len(queries)
    return len(queries), {
        **found,
        "mean_first_rank": sum(ranks) / len(ranks),
        "median_first_rank": float(np.median(ranks)),
    }


def row(name, label, queries, recall, map_at_r, **others):
    scores = {"recall@1": recall, "map@r": map_at_r, "r_precision": 0.5, "map": 0.5, **others}
    return ClassRow(name, label, "", queries, scores)


def test_class_table_is_the_mean_of_each_class(scores):
    rows = class_table(scores, NAMES, SUPER_CLASSES)
    assert [row.label for row in rows] == [3, 5, 8]
    assert [row.name for row in rows] == ["bicycle", "chair, with arms", 'sofa "Nord"']
    assert [row.super_class for row in rows] == ["vehicles", "furniture", "furniture"]
    for row in rows:
        queries, expected = naive(scores, lambda label, own=row.label: label == own)
        assert row.queries == queries
        assert row.scores == pytest.approx(expected, rel=1e-12)
        assert tuple(row.scores) == SCORES
    assert sum(row.queries for row in rows) == len(scores)
    mean = sum(row.queries * row.scores["recall@1"] for row in rows) / len(scores)
    assert mean == pytest.approx(scores.columns["recall@1"].mean())


def test_classes_without_a_positive_have_a_row_where_they_are_known(scores, labels):
    rows = class_table(scores, NAMES, SUPER_CLASSES, query_labels=labels)
    assert rows[:3] == class_table(scores, NAMES, SUPER_CLASSES)
    assert rows[3] == ClassRow("tür", 9, "", 0, {})


def test_names_are_optional(scores):
    rows = class_table(scores, {})
    assert [(row.name, row.super_class) for row in rows] == [("3", ""), ("5", ""), ("8", "")]


def test_super_class_table_is_the_mean_of_the_queries(scores):
    rows = super_class_table(scores, SUPER_CLASSES)
    assert [(row.name, row.label) for row in rows] == [("furniture", 0), ("vehicles", 1)]
    queries, expected = naive(scores, lambda label: SUPER_CLASSES[label] == "furniture")
    assert rows[0].queries == queries == 49
    assert rows[0].scores == pytest.approx(expected, rel=1e-12)


def test_super_classes_must_be_whole(scores):
    with pytest.raises(ValueError, match="none of 1 of 3 classes, first of label 5"):
        super_class_table(scores, {3: "a", 8: "b"})


def test_tables_need_recall_at_1(scores):
    columns = {name: values for name, values in scores.columns.items() if name != "recall@1"}
    with pytest.raises(ValueError, match="found no recall@1"):
        class_table(replace(scores, columns=columns), NAMES)


def test_confusions_count_wrong_neighbours():
    rng = np.random.default_rng(0)
    labels, found = rng.integers(0, 5, 300), rng.integers(0, 5, 300)
    counted = Counter((a, b) for a, b in zip(labels, found, strict=True) if a != b)
    result = confusions(found, labels)
    assert {(a, b): count for a, b, count in result} == counted
    assert [count for _, _, count in result] == sorted(counted.values(), reverse=True)
    assert result == sorted(result, key=lambda entry: (-entry[2], entry[0], entry[1]))
    assert all(type(number) is int for entry in result for number in entry)
    assert confusions(labels, labels) == []


def test_confusions_of_other_queries_are_an_error():
    with pytest.raises(ValueError, match=r"\(3,\) of neighbours and \(4,\) of queries"):
        confusions(np.zeros(3), np.zeros(4))


def test_text_shows_the_worst_classes_first():
    rows = [
        row("good", 0, 12, 0.9, 0.8),
        row("worst", 1, 3, 0.25, 0.1),
        row("bad", 2, 100, 0.25, 0.2),
        ClassRow("unknown", 3, "", 0, {}),
    ]
    columns = ("class", "queries", "recall@1")
    assert format_table(rows, columns, limit=None).splitlines() == [
        "class    queries  recall@1",
        "worst          3     25.00",
        "bad          100     25.00",
        "good          12     90.00",
        "unknown        0         -",
    ]
    assert format_table(rows, columns, limit=2).splitlines() == [
        "class  queries  recall@1",
        "worst        3     25.00",
        "bad        100     25.00",
        "(2 of 4 shown, the worst first)",
    ]


def test_text_has_every_column(scores):
    lines = format_table(class_table(scores, NAMES), COLUMNS).splitlines()
    assert lines[0].split() == list(COLUMNS)
    assert len(lines) == 4
    (bicycle,) = [line for line in lines if line.startswith("bicycle")]
    median = naive(scores, lambda label: label == 3)[1]["median_first_rank"]
    assert bicycle.split()[-1] == f"{median:.1f}"
    with pytest.raises(ValueError, match="found recall@2"):
        format_table([], ("class", "recall@2"))


def test_csv_holds_every_cell(scores, labels, tmp_path):
    rows = class_table(scores, NAMES, SUPER_CLASSES, query_labels=labels)
    write_table(rows, tmp_path / "classes.csv")
    with (tmp_path / "classes.csv").open(encoding="utf-8", newline="") as file:
        read = list(csv.DictReader(file))
    assert list(read[0]) == list(COLUMNS)
    assert [line["class"] for line in read] == list(NAMES.values())
    for line, row in zip(read, rows, strict=True):
        assert (int(line["queries"]), line["super_class"]) == (row.queries, row.super_class)
        for name in SCORES:
            assert line[name] == str(row.scores.get(name, ""))  # floats read back exactly
    assert [path.name for path in tmp_path.iterdir()] == ["classes.csv"]
