"""What makes figures mean little, or a training a waste: a warning line for each.

Every function returns such lines, none where there is nothing to warn about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from metric_learning.common.sizes import size_text
from metric_learning.engine.evaluate.scoring import Roles, chances, labels_by_role
from metric_learning.engine.options.parts import ModelOptions
from metric_learning.retrieval.metrics import count_positives
from metric_learning.retrieval.scores import QueryScores
from metric_learning.retrieval.significance import MIN_CLASSES

FEW_CLASSES, FEW_QUERIES = 10, 100
# Of fewer classes than the first, fewer than the second that are not near to what the others score
# make an interval too short.
MANY_CLASSES, FEW_DECIDING, NEAR = 50, 5, 0.1
# A network of so many parameters is seldom learned from random weights by fewer images than these.
LARGE_NETWORK, FEW_IMAGES = 1_000_000, 100_000


def of_split(images: Roles, ks: Sequence[int]) -> list[str]:
    """Warn where the figures of a split say little, whatever the model."""
    return [*few_classes(images), *few_queries(images), *large_ks(images, ks)]


def few_classes(images: Roles) -> list[str]:
    """Warn of few classes to tell apart: one alone is always found."""
    found = len(np.unique(images.labels[images.is_gallery]))
    if found >= FEW_CLASSES:
        return []
    chance = chances(images, ["recall@1"])["recall@1_chance"]
    return [
        f"warning: {found} test {'class' if found == 1 else 'classes'}: with fewer than "
        f"{FEW_CLASSES} every figure is high, here chance alone has a recall@1 of {chance:.5f}"
    ]


def few_queries(images: Roles) -> list[str]:
    """Warn of few queries, of which each moves the figures much."""
    found = int((count_positives(*labels_by_role(images))[0] > 0).sum())
    if found == 0 or found >= FEW_QUERIES:
        return []
    return [f"warning: {found} queries with a positive: one of them is {1 / found:.1%} of a figure"]


def large_ks(images: Roles, ks: Sequence[int]) -> list[str]:
    """Warn of Recall@K that looks at half of all images or more."""
    size = int(count_positives(*labels_by_role(images))[1].max(initial=0))
    large = [k for k in ks if k > 1 and 2 * k >= size]
    if not large:
        return []
    found = chances(images, [f"recall@{k}" for k in large])
    said = ", ".join(f"recall@{k} {found[f'recall@{k}_chance']:.5f}" for k in large)
    return [f"warning: K is half of the {size} images of the gallery or more; chance has {said}"]


def few_decide(scores: QueryScores) -> list[str]:
    """Warn of an interval of few classes that nearly all have a Recall@1 of 0, or nearly all of 1.

    How often the few others occur then decides the mean, and so few hardly tell that.
    """
    classes, sizes = np.unique(scores.labels, return_inverse=True, return_counts=True)[1:]
    means = np.bincount(classes, scores.columns["recall@1"]) / sizes
    if not MIN_CLASSES <= len(means) < MANY_CLASSES:
        return []
    return [
        f"warning: {len(means) - others} of {len(means)} classes have a recall@1 of about {end}, "
        f"and the {others} others decide: the interval misses the truth more often than 5 %"
        for end in (0, 1)
        if 0 < (others := int((np.abs(means - end) > NEAR).sum())) < FEW_DECIDING
    ]


def other_inputs(
    options: ModelOptions, meta: Mapping[str, Any], mean: Sequence[float], std: Sequence[float]
) -> list[str]:
    """Warn where weights were trained on images of another size or preparation than those here.

    `meta` is what their file says, empty for those of others; mean and std are those used here.
    """
    trained = meta.get("flags", {}) | {name: meta[name] for name in ("mean", "std") if name in meta}
    shape = trained.get("image_shape")
    there = {
        "size": None if shape is None else size_text(tuple(shape[1:])),
        "transform": trained.get("transform"),
        "test images": trained.get("test_resize"),
        **{name: trained.get(name) and tuple(trained[name]) for name in ("mean", "std")},
    }
    here: dict[str, Any] = {"size": size_text(options.image_size), "transform": options.transform}
    here |= {"test images": options.test_resize, "mean": tuple(mean), "std": tuple(std)}

    changed = [
        f"{name} {there[name]} there, {here[name]} here"
        for name in here
        if there[name] not in (None, here[name])
    ]
    if not changed:
        return []
    return [
        f"warning: {options.pretrained_model} was trained on other inputs: {'; '.join(changed)}"
    ]


def no_weights(
    model: str, num_parameters: int, num_images: int, freezes_bn: bool = False
) -> list[str]:
    """Warn where random weights are trained: a large network on a small set, or with frozen norms.

    `freezes_bn` says that batch norm keeps the statistics that it begins with.
    """
    lines = []
    if num_parameters >= LARGE_NETWORK and num_images < FEW_IMAGES:
        lines.append(
            f"warning: {model} starts from random weights: {num_parameters / 1e6:.1f} million "
            f"parameters learn little of {num_images} images. --pretrained_model=FILE starts from "
            "weights of others (python pretrained/fetch_weights.py fetches them)"
        )
    if freezes_bn:
        lines.append(
            f"warning: {model} starts from random weights, and --freeze_bn=True keeps statistics "
            "that are of no data: --freeze_bn=False, or "
            "--config=configs/recipes/stage1_scratch.yaml for all of it"
        )
    return lines
