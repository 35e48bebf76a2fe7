"""What a report shows, against naive loops; its charts and its map."""

import json
import re
import sys
from dataclasses import replace
from itertools import product
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
from report_subject import RECORDS, make_subject, split_roles

from metric_learning.engine.report.data import (
    QueryChoice,
    Subject,
    choose_queries,
    confusion_example,
    find,
    pair_cosines,
    recall_curve,
    sample_pairs,
)
from metric_learning.engine.report.embedding_map import (
    EmbeddingMap,
    choose_rows,
    map_embeddings,
    spread,
    thin_out,
)
from metric_learning.engine.report.figures import (
    draw_loss,
    draw_recall,
    draw_recalls,
    draw_runs,
    draw_similarities,
    draw_tests,
)
from metric_learning.engine.run.records import curve_of, read_records


@pytest.fixture(params=["self", "gallery"])
def subject(request) -> Subject:
    return make_subject(roles=None if request.param == "self" else split_roles(60, 25))


def ranking(subject: Subject, row: int) -> list[int]:
    """Rows that a query can find, most similar first."""
    unit = subject.embeddings.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    others = [other for other in np.flatnonzero(subject.is_gallery).tolist() if other != row]
    return sorted(others, key=lambda other: -float(unit[row] @ unit[other]))


def test_neighbours_and_curve_are_those_of_a_full_sort(subject):
    found = find(subject)
    curve = recall_curve(found)
    rankings = [ranking(subject, row) for row in np.flatnonzero(subject.is_query).tolist()]
    rows = np.flatnonzero(subject.is_query).tolist()
    hits = []
    for row, ranked in zip(rows, rankings, strict=True):
        is_right = [subject.labels[other] == subject.labels[row] for other in ranked]
        if any(is_right):
            hits.append(is_right)
            place = found.rows.tolist().index(row)
            assert found.neighbours[place].tolist() == ranked[:6]
    assert len(hits) == len(found.scores) and found.num_findable == len(hits[0])
    expected = [np.mean([any(is_right[:k]) for is_right in hits]) for k in curve.ks]
    np.testing.assert_allclose(curve.recalls, expected)
    assert curve.ks[0] == 1 and curve.ks[-1] == found.num_findable and curve.recalls[-1] == 1
    assert (np.diff(curve.ks) > 0).all() and (np.diff(curve.chances) > 0).all()
    assert curve.low is not None and (curve.low <= curve.recalls).all()
    assert curve.high is not None and (curve.recalls <= curve.high).all()


def test_one_class_has_a_curve_without_interval():
    subject = make_subject(num_classes=1)
    curve = recall_curve(find(subject))
    assert curve.low is None and curve.high is None and (curve.recalls == 1).all()


@pytest.mark.parametrize("is_positive", [True, False])
def test_all_pairs_are_drawn_equally_often(is_positive):
    for roles in (None, split_roles(14, 5)):
        subject = make_subject(14, 4, roles)
        rows = np.flatnonzero(subject.is_query), np.flatnonzero(subject.is_gallery)
        possible = {
            (i, j)
            for i, j in product(*(part.tolist() for part in rows))
            if i != j and (subject.labels[i] == subject.labels[j]) == is_positive
        }
        num_pairs = 500 * len(possible)
        drawn = sample_pairs(subject, is_positive, num_pairs)
        counts = dict.fromkeys(possible, 0)
        for pair in zip(*(part.tolist() for part in drawn), strict=True):
            counts[pair] += 1
        # 500 is expected of each; six standard deviations of a Poisson count.
        assert max(abs(count - 500) for count in counts.values()) < 6 * 500**0.5


def test_there_may_be_no_pair_of_a_kind():
    one_class = make_subject(6, 1)
    assert len(sample_pairs(one_class, False, 10)[0]) == 0
    all_different = replace(one_class, labels=np.arange(6))
    assert len(sample_pairs(all_different, True, 10)[0]) == 0


def test_cosines_of_pairs():
    subject = make_subject()
    first, second = sample_pairs(subject, True, 9000)
    cosines = pair_cosines(subject.embeddings, first, second)
    for place in (0, 4095, 4096, 8999):
        left, right = subject.embeddings[first[place]], subject.embeddings[second[place]]
        expected = left @ right / np.linalg.norm(left) / np.linalg.norm(right)
        assert cosines[place] == pytest.approx(expected, abs=1e-6)


def test_queries_to_show_are_the_extremes_of_different_classes():
    scores = find(make_subject(200, 12)).scores
    chosen = choose_queries(scores, 8)
    precision = scores.columns["map"]
    best_of_class = sorted(precision[scores.labels == c].max() for c in set(scores.labels))
    assert precision[chosen["best"]].tolist() == best_of_class[::-1][:8]
    last_of_class = sorted(scores.first_rank[scores.labels == c].max() for c in set(scores.labels))
    assert scores.first_rank[chosen["worst"]].tolist() == last_of_class[::-1][:8]
    assert len(set(chosen["random"].tolist())) == 8
    for kind in ("best", "worst"):
        assert len(set(scores.labels[chosen[kind]].tolist())) == 8


def test_of_few_classes_several_queries_are_shown():
    scores = find(make_subject(7, 2)).scores
    for places in choose_queries(scores, 8).values():
        assert sorted(places.tolist()) == list(range(7))


def test_the_example_of_a_confusion_is_its_most_similar_pair():
    found = find(make_subject(200, 12))
    labels = make_subject(200, 12).labels
    neighbour_labels = labels[found.neighbours[:, 0]]
    wrong = np.flatnonzero(neighbour_labels != found.scores.labels)
    pair = (int(found.scores.labels[wrong[0]]), int(neighbour_labels[wrong[0]]))
    same = [
        place
        for place in wrong.tolist()
        if (found.scores.labels[place], neighbour_labels[place]) == pair
    ]
    expected = max(same, key=lambda place: found.cosines[place, 0])
    assert confusion_example(found, neighbour_labels, pair) == expected


def test_queries_are_chosen_by_path_and_class():
    subject = replace(make_subject(), paths=[f"shop/Cup_{number}.png" for number in range(60)])
    found = find(subject)
    choice = QueryChoice(("cup_12.", "CLASS <5>"))
    wanted = {12} | set(np.flatnonzero(subject.labels == 5).tolist())
    assert {int(found.rows[place]) for place in choice.places(subject, found)} == wanted
    choice.check(subject.paths, subject.labels, subject.class_names)
    with pytest.raises(ValueError, match="--show=dog: none of 60 images"):
        QueryChoice(("dog",)).check(subject.paths, subject.labels, subject.class_names)


def test_numbers_on_a_map_do_not_overlap_and_stay_near():
    places = np.random.default_rng(0).uniform((0, 0), (1000, 680), (100, 2))
    places[:10] = places[0]
    moved = spread(places, (22, 14))
    assert (moved >= (11, 7)).all() and (moved <= (989, 673)).all()
    apart = np.abs(moved[:, None] - moved[None]) / (22, 14)
    assert (apart.max(2) + 9 * np.eye(100) >= 1 - 1e-9).all()
    assert np.median(np.abs(moved - places).max(1)) < 5


def test_pictures_of_a_map_do_not_overlap_and_leave_no_room():
    centres = np.random.default_rng(0).uniform(0, 300, (200, 2))
    shown = thin_out(centres, 30)

    def overlaps(one, other):
        return abs(one[0] - other[0]) < 30 and abs(one[1] - other[1]) < 30

    pictures = centres[shown]
    for number, one in enumerate(pictures):
        assert not any(overlaps(one, other) for other in pictures[:number])
    for dot in centres[~shown]:
        assert any(overlaps(dot, picture) for picture in pictures)


def test_a_map_has_at_most_200_classes_and_2000_images():
    many_classes = choose_rows(np.repeat(np.arange(1000), 5))
    assert len(many_classes) == 1000 and len(set((many_classes // 5).tolist())) == 200
    many_images = choose_rows(np.arange(5000) % 3)
    assert len(set(many_images.tolist())) == 2000 and (np.diff(many_images) > 0).all()


def test_a_map_keeps_far_groups_apart():
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2
    embeddings = np.eye(5)[labels] + 0.01 * rng.normal(size=(60, 5))
    layout = map_embeddings(embeddings.astype(np.float32), labels)
    assert isinstance(layout, EmbeddingMap)
    distances = np.linalg.norm(layout.centres[:, None] - layout.centres[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    assert (labels[distances.argmin(1)] == labels).all()


def test_umap_draws_the_map_where_it_is_installed(monkeypatch):
    def first_two(n_neighbors, n_jobs, random_state):
        assert n_neighbors == 11
        return SimpleNamespace(fit_transform=lambda rows: rows[:, :2])

    rows = np.random.default_rng(0).normal(size=(12, 4))
    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=first_two))
    layout = map_embeddings(rows, np.arange(12))
    assert layout is not None and layout.method == "UMAP"
    assert layout.centres.min(0) == pytest.approx([18, 18])
    assert layout.centres.max(0) == pytest.approx([982, 662])
    monkeypatch.setitem(sys.modules, "umap", None)  # an import of it fails
    layout = map_embeddings(rows, np.arange(12))
    assert layout is not None and layout.method == "t-SNE"


@pytest.mark.parametrize("embeddings", [np.eye(9), np.ones((30, 4)), np.ones((30, 1))])
def test_there_is_no_map_of_too_little(embeddings):
    assert map_embeddings(embeddings, np.arange(len(embeddings))) is None


def charts():
    found = find(make_subject())
    yield draw_recall(recall_curve(found))
    yield draw_recall(recall_curve(find(make_subject(num_classes=1))))
    yield draw_similarities(np.linspace(0.2, 1, 50), np.linspace(-0.3, 0.5, 50))
    yield draw_similarities(np.ones(3), np.empty(0))
    yield draw_loss(RECORDS)
    yield draw_tests(RECORDS)
    curves = {
        f"_model {number}": recall_curve(find(make_subject(seed=number))) for number in (1, 2)
    }
    yield draw_recalls(curves)
    low = [record | {"loss": 0.001} for record in RECORDS]
    yield draw_runs({"_a": RECORDS, "$b$": low, "c": []}, "train", "loss")
    yield draw_runs({"_a": RECORDS, "$b$": low, "c": []}, "test", "recall@1")


def test_charts_are_svg_with_text_in_the_colours_of_the_page():
    for svg in charts():
        root = ElementTree.fromstring(svg)
        assert root.get("role") == "img" and root.get("aria-label")
        assert any(element.tag.endswith("text") for element in root.iter())
        assert "var(--first)" in svg and "font-family: var(--font)" in svg
        assert not re.search(r"#0102\w\w|<style|<metadata|font-family: '", svg)


def test_a_run_without_records_has_no_charts():
    assert draw_loss([]) == draw_tests([]) == ""
    assert draw_loss(RECORDS[2:]) == "" and draw_tests(RECORDS[2:])


def test_of_a_resumed_run_the_later_record_counts(tmp_path):
    file = tmp_path / "stats.jsonl"
    records = [*RECORDS, {"kind": "train", "step": 1, "loss": 5.0}]
    file.write_text("\n".join(map(json.dumps, records)) + "\n")
    assert curve_of(read_records(file), "train", "loss") == ([1, 2], [5.0, 1.0])
