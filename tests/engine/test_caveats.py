"""Warnings about figures that mean little."""

from types import SimpleNamespace

import numpy as np
import pytest

from metric_learning.engine.evaluate import caveats


def images(counts, num_queries=None):
    """Classes of these numbers of images, all of which search all others, or some a gallery."""
    labels = np.repeat(np.arange(len(counts)), counts)
    is_query = np.ones(len(labels), bool)
    is_gallery = is_query.copy()
    if num_queries is not None:
        is_query = np.arange(len(labels)) < num_queries
        is_gallery = ~is_query
    return SimpleNamespace(
        labels=labels,
        is_query=is_query,
        groups=None,
        is_gallery=is_gallery,
        is_self_retrieval=num_queries is None,
    )


def test_large_splits_are_not_warned_about():
    assert caveats.of_split(images([20] * 10), (1, 10)) == []


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ([200], ["1 test class:", "recall@1 of 1.00000"]),
        ([2, 2], ["2 test classes:", "4 queries with a positive: one of them is 25.0%"]),
        ([20] * 9, ["9 test classes:"]),
        ([1] * 500 + [2], ["2 queries with a positive"]),
    ],
)
def test_few_classes_and_few_queries_are(counts, words):
    lines = caveats.of_split(images(counts), (1,))
    assert len(lines) == len([word for word in words if not word.startswith("recall")])
    assert all(any(word in line for line in lines) for word in words)
    assert all(line.startswith("warning: ") for line in lines)


def test_k_near_the_gallery_is_with_what_chance_has():
    [line] = caveats.of_split(images([60] * 10), (1, 100, 300, 599))
    assert "half of the 599 images" in line
    assert "recall@300" in line and "recall@599 1.00000" in line and "recall@100" not in line
    of_gallery = caveats.large_ks(images([4] * 10, num_queries=20), (10,))
    assert "half of the 20 images" in of_gallery[0]


def test_weights_of_other_inputs_are_named_with_both_values():
    options = SimpleNamespace(
        image_size=(224, 224), transform="reference", test_resize="squash", pretrained_model="a.pt"
    )
    mean, std = (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)
    meta = {"flags": {"image_shape": [3, 48, 48], "transform": "standard"}, "mean": [0.5] * 3}
    [line] = caveats.other_inputs(options, meta, mean, std)
    assert "a.pt was trained on other inputs" in line
    assert "size 48 px there, 224 px here; transform standard there, reference here" in line
    assert "mean" not in line and "std" not in line and "test images" not in line
    meta["flags"]["test_resize"] = "short_side"
    [line] = caveats.other_inputs(options, meta, mean, std)
    assert "test images short_side there, squash here" in line
    assert caveats.other_inputs(options, {}, mean, std) == []


def test_random_weights_are_warned_about_where_images_are_few():
    assert (
        "ResNet50 starts from random weights" in caveats.no_weights("ResNet50", 25_000_000, 842)[0]
    )
    assert caveats.no_weights("ResNet50", 25_000_000, 1_000_000) == []
    assert caveats.no_weights("tiny", 400_000, 842) == []
    [line] = caveats.no_weights("tiny", 400_000, 842, freezes_bn=True)
    assert "statistics that are of no data" in line and "stage1_scratch.yaml" in line


@pytest.mark.parametrize(
    ("means", "words"),
    [
        (
            [0, 0, 0, 0, 0, 0.05, 0.9],
            ["6 of 7 classes have a recall@1 of about 0, and the 1 others"],
        ),
        ([1] * 20 + [0.4] * 4, ["20 of 24 classes have a recall@1 of about 1"]),
        ([1] * 20 + [0.4] * 5, []),
        ([0] * 48 + [1] * 2, []),  # no longer few
        ([0, 0, 0, 0, 1], []),  # no interval
        ([1] * 8, []),
    ],
)
def test_classes_of_which_a_few_decide(means, words):
    recalls = np.concatenate([np.arange(20) < 20 * mean for mean in means])
    labels = np.repeat(np.arange(len(means)), 20)
    scores = SimpleNamespace(labels=labels, columns={"recall@1": recalls})
    found = caveats.few_decide(scores)
    assert len(found) == len(words)
    assert all(part in line for part, line in zip(words, found, strict=True))
