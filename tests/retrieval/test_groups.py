"""Groups: agreement with a loop that follows the rule of Market-1501, as torchreid has it."""

import numpy as np
import pytest
from oracle import make, unit

from metric_learning.retrieval import evaluate
from metric_learning.retrieval.euclidean import euclidean_similarities
from metric_learning.retrieval.groups import Groups
from metric_learning.retrieval.inputs import find_own_rows
from metric_learning.retrieval.metrics import chance_recall, score_queries, score_similarities
from metric_learning.retrieval.search import nearest
from metric_learning.retrieval.verification import similarity_histograms, verification_scores

KS = (1, 2, 5, 10)


def follow_the_rule(similarities, labels, gallery_labels, groups, gallery_groups, own_rows=None):
    """Market-1501's scores by their definition, after torchreid's metrics/rank.py eval_market1501.

    A negative that ties with a positive stands before it. Returns a list of the scored queries'
    first rank and average precision, and how many queries have no positive left.
    """
    scored, without = [], 0
    for query, row in enumerate(similarities):
        order = np.lexsort((gallery_labels == labels[query], -row.round(9)))
        remove = (gallery_labels[order] == labels[query]) & (
            (gallery_groups[order] == groups[query]) & (groups[query] >= 0)
        )
        if own_rows is not None:
            remove |= order == own_rows[query]
        raw_cmc = (gallery_labels[order] == labels[query])[~remove]
        if not raw_cmc.any():
            without += 1
            continue
        precisions = np.cumsum(raw_cmc) / (np.arange(len(raw_cmc)) + 1.0)
        average = (precisions * raw_cmc).sum() / raw_cmc.sum()
        scored.append((int(np.argmax(raw_cmc)) + 1, average))
    return scored, without


def check(scores, expected):
    """Hold scores against those of the rule, to all digits."""
    scored, without = expected
    assert scores.queries_without_positive == without and len(scores) == len(scored)
    assert scores.first_rank.tolist() == [first for first, _ in scored]
    np.testing.assert_allclose(
        scores.columns["map"], [average for _, average in scored], rtol=1e-13, atol=0
    )
    for k in KS:
        found = scores.columns[f"recall@{k}"].mean()
        assert found == np.mean([first <= k for first, _ in scored])


@pytest.fixture(params=["random", "clustered", "tied", "duplicated", "large classes", "collapsed"])
def data(request):
    """Queries and a gallery of few classes and cameras, some images in no group."""
    rows, labels = make(request.param, 700, 8)
    rng = np.random.default_rng(1)
    groups = rng.integers(-1, 3, len(rows))
    groups[labels == 0] = 1  # a class of one camera: its queries have no positive left
    return rows, labels, groups


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_queries_against_a_gallery(data, distance, device):
    rows, labels, groups = data
    queries, gallery = slice(200), slice(200, None)
    options = {"gallery_embeddings": rows[gallery], "gallery_labels": labels[gallery]}
    options |= {"groups": groups[queries], "gallery_groups": groups[gallery]}
    scores = score_queries(
        rows[queries], labels[queries], KS, **options, device=device, distance=distance
    )
    similarities = unit(rows[queries]) @ unit(rows[gallery]).T
    if distance == "euclidean":
        parts = [part for _, part in euclidean_similarities(rows[queries], rows[gallery], "cpu")]
        similarities = np.concatenate(parts)
    sets = labels[queries], labels[gallery], groups[queries], groups[gallery]
    check(scores, follow_the_rule(similarities, *sets))

    by_similarity = score_similarities(
        [(slice(0, 200), similarities)],
        labels[queries],
        KS,
        gallery_labels=labels[gallery],
        groups=groups[queries],
        gallery_groups=groups[gallery],
    )
    check(by_similarity, follow_the_rule(similarities, *sets))


def test_every_image_searches_all_others(data, device):
    rows, labels, groups = data
    scores = score_queries(rows, labels, KS, groups=groups, device=device)
    similarities, own = unit(rows) @ unit(rows).T, np.arange(len(rows))
    expected = follow_the_rule(similarities, labels, labels, groups, groups, own)
    check(scores, expected)
    assert expected[1] >= (labels == 0).sum()
    found = evaluate(rows, labels, KS, groups=groups)
    assert found["queries_without_positive"] == expected[1]


def test_a_gallery_that_holds_some_of_the_queries(data, device):
    rows, labels, groups = data
    rng = np.random.default_rng(2)
    is_query, is_gallery = rng.random(len(rows)) < 0.4, rng.random(len(rows)) < 0.8
    own = find_own_rows(is_query, is_gallery)
    sets = labels[is_query], labels[is_gallery], groups[is_query], groups[is_gallery]
    scores = score_queries(
        rows[is_query],
        sets[0],
        KS,
        gallery_embeddings=rows[is_gallery],
        gallery_labels=sets[1],
        groups=sets[2],
        gallery_groups=sets[3],
        own_rows=own,
        device=device,
    )
    similarities = unit(rows[is_query]) @ unit(rows[is_gallery]).T
    check(scores, follow_the_rule(similarities, *sets, own))


def test_without_a_shared_group_nothing_changes():
    rows, labels = make("clustered", 300, 8)
    plain = evaluate(rows, labels, KS)
    assert evaluate(rows, labels, KS, groups=np.full(300, -1)) == plain
    assert evaluate(rows, labels, KS, groups=np.arange(300)) == plain


def test_chance_is_the_mean_over_random_orders():
    labels = np.array([0, 0, 0, 1, 1, 1, 2, 2])
    groups = np.array([0, 0, 1, 0, 1, 1, 0, 0])
    everyone = Groups(groups, groups)
    found = chance_recall(labels, [1, 2], None, None, everyone)
    rng, hits = np.random.default_rng(0), []
    for _ in range(3000):
        similarities = rng.random((8, 8))
        scored, without = follow_the_rule(
            similarities, labels, labels, groups, groups, np.arange(8)
        )
        assert without == 2  # those of class 2
        hits.append([np.mean([first <= k for first, _ in scored]) for k in (1, 2)])
    np.testing.assert_allclose([*found.values()], np.mean(hits, 0), atol=0.02)


@pytest.mark.parametrize("kind", ["self", "gallery", "overlap"])
def test_two_images_of_a_class_and_group_are_no_pair(kind, device):
    rows, labels = make("clustered", 160, 8)
    rng = np.random.default_rng(3)
    groups = rng.integers(-1, 2, len(rows))
    is_query = is_gallery = np.ones(len(rows), bool)
    if kind == "gallery":
        is_query = np.arange(160) < 60
        is_gallery = ~is_query
    elif kind == "overlap":
        is_query, is_gallery = rng.random(160) < 0.5, rng.random(160) < 0.7

    options = {"groups": groups[is_query], "device": device}
    if kind != "self":
        options |= {"gallery_embeddings": rows[is_gallery], "gallery_labels": labels[is_gallery]}
        own = find_own_rows(is_query, is_gallery)
        options |= {"gallery_groups": groups[is_gallery], "own_rows": own}
    found = similarity_histograms(rows[is_query], labels[is_query], **options)

    positives, negatives = [], []
    cosines = unit(rows) @ unit(rows).T
    for i in np.flatnonzero(is_query):
        for j in np.flatnonzero(is_gallery):
            is_same = labels[i] == labels[j]
            if i == j or (kind == "self" and j < i):
                continue
            if is_same and groups[i] == groups[j] >= 0:
                continue
            (positives if is_same else negatives).append(cosines[i, j])
    for counts, values in ((found.positives, positives), (found.negatives, negatives)):
        assert counts.sum() == len(values)
        edges = np.histogram(values, found.edges)[0]
        assert np.abs(np.cumsum(counts) - np.cumsum(edges)).max() <= 1
    scores = verification_scores(rows[is_query], labels[is_query], **options)
    assert scores["positive_pairs"] == len(positives)


def test_neighbours_leave_out_what_the_group_rules_out():
    rows, labels = make("clustered", 60, 8)
    groups = np.random.default_rng(0).integers(0, 2, 60)
    own = np.arange(60)
    same = (labels[:, None] == labels) & (groups[:, None] == groups)
    found, cosines = nearest(rows, rows, 5, own, left_out=np.nonzero(same))
    similarities = np.where(same | np.eye(60, dtype=bool), -np.inf, unit(rows) @ unit(rows).T)
    expected = np.sort(similarities, axis=1)[:, ::-1][:, :5]
    np.testing.assert_allclose(cosines, expected, atol=1e-6)
    assert not same[np.arange(60)[:, None], found].any()


def test_groups_of_other_numbers_are_refused():
    rows, labels = make("random", 20, 4)
    with pytest.raises(ValueError, match="expected 20 integer groups of queries"):
        evaluate(rows, labels, [1], groups=np.zeros(19, int))
    with pytest.raises(ValueError, match="integer groups"):
        evaluate(rows, labels, [1], groups=np.zeros(20))
    gallery = {"gallery_embeddings": rows, "gallery_labels": labels}
    with pytest.raises(ValueError, match="and of the gallery"):
        evaluate(rows, labels, [1], groups=np.zeros(20, int), **gallery)
