"""Scores of the queries of an image set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from metric_learning.engine.parallel.collectives import share_of
from metric_learning.engine.parallel.world import World
from metric_learning.reader import ImageSet
from metric_learning.retrieval.groups import Groups
from metric_learning.retrieval.inputs import find_own_rows
from metric_learning.retrieval.metrics import (
    chance_recall,
    count_positives,
    default_ks,
    score_queries,
    score_similarities,
)
from metric_learning.retrieval.rerank import Rerank, reranked_similarities
from metric_learning.retrieval.scores import QueryScores


def check_scorable(image_set: ImageSet) -> None:
    """Raise ValueError, before the work, where no query could find another image of its class."""
    what = f"the {image_set.split} split of {image_set.name} cannot be scored"
    remedy = "choose other images, or let a training test nothing (--test_iter_step=0)"
    for role, members in (("queries", image_set.is_query), ("gallery", image_set.is_gallery)):
        if not members.any():
            raise ValueError(f"{what}: it has no image among its {role}; {remedy}")

    num_positives, _ = count_positives(*labels_by_role(image_set))
    if not num_positives.any():
        others = "" if image_set.groups is None else " and of another group"
        raise ValueError(
            f"{what}: none of its {len(num_positives)} queries has another image of its class"
            f"{others} in the gallery of {int(image_set.is_gallery.sum())}; {remedy}"
        )


def score_images(
    image_set: ImageSet,
    embeddings: np.ndarray,
    device: torch.device,
    ks: Sequence[int] = (),
    *,
    precision_ks: Sequence[int] = (),
    ties: str = "pessimistic",
    rerank: Rerank | None = None,
    world: World | None = None,
    distance: str = "cosine",
) -> QueryScores:
    """Score every query of an image set, see `retrieval.score_queries`; all processes get all.

    The embeddings (N, D) float32 are in the order of the set. `ks` of Recall@K come beside those
    of 1, 10, 100, 1000 that the gallery holds. The CPU stands in for a device without float64.
    """
    gallery_size = int(image_set.is_gallery.sum())
    all_ks = sorted({*ks, *default_ks(gallery_size)})
    sets = by_role(image_set, embeddings)
    options: dict[str, Any] = {"precision_ks": precision_ks, "ties": ties}
    where = with_float64(device)
    if rerank is None:
        share = share_of(world or World(), device)
        options |= {"device": where, "share": share, "distance": distance}
        return score_queries(**sets, ks=all_ks, **options)
    queries, gallery = sets.pop("embeddings"), sets.pop("gallery_embeddings", None)
    chunks = reranked_similarities(rerank, queries, gallery, where, sets.get("own_rows"))
    return score_similarities(chunks, **sets, ks=all_ks, **options)


def by_role(image_set: ImageSet, embeddings: np.ndarray) -> dict[str, Any]:
    """Return the arguments of `retrieval.score_queries` that say who searches what."""
    groups = groups_by_role(image_set)
    if image_set.is_self_retrieval:
        by_group = {} if groups is None else {"groups": groups.queries}
        return {"embeddings": embeddings, "labels": image_set.labels, **by_group}

    by_group = (
        {} if groups is None else {"groups": groups.queries, "gallery_groups": groups.gallery}
    )
    own_rows = find_own_rows(image_set.is_query, image_set.is_gallery)
    return {
        "embeddings": embeddings[image_set.is_query],
        "labels": image_set.labels[image_set.is_query],
        "gallery_embeddings": embeddings[image_set.is_gallery],
        "gallery_labels": image_set.labels[image_set.is_gallery],
        **({} if own_rows is None else {"own_rows": own_rows}),
        **by_group,
    }


class Roles(Protocol):
    """Images of which some search and some are searched: an image set, or what a report is on."""

    @property
    def labels(self) -> np.ndarray:
        """Classes, (N,) int64."""

    @property
    def is_query(self) -> np.ndarray:
        """Which images search, (N,) bool."""

    @property
    def is_gallery(self) -> np.ndarray:
        """Which images are searched, (N,) bool."""

    @property
    def groups(self) -> np.ndarray | None:
        """What group each is of, (N,) int64, -1: none; None: there are no groups."""

    @property
    def is_self_retrieval(self) -> bool:
        """Whether every image searches all others."""


def groups_by_role(images: Roles) -> Groups | None:
    """Return the groups of the images that search and of those that are searched, if any."""
    groups = images.groups
    return None if groups is None else Groups(groups[images.is_query], groups[images.is_gallery])


def labels_by_role(
    images: Roles,
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None, Groups | None]:
    """Return the labels of the queries and, if some are not searched or do not search, the gallery.

    That is its labels, and which queries it holds too. The groups of both are the last.
    """
    labels, is_query, is_gallery = images.labels, images.is_query, images.is_gallery
    groups = groups_by_role(images)
    if images.is_self_retrieval:
        return labels, None, None, groups
    return labels[is_query], labels[is_gallery], is_gallery[is_query], groups


def chances(images: Roles, metrics: Iterable[str]) -> dict[str, float]:
    """Return `recall@K_chance`, see `chance_recall`, of each `recall@K` among some metrics."""
    queries, gallery, is_in_gallery, groups = labels_by_role(images)
    ks = [int(name.removeprefix("recall@")) for name in metrics if name.startswith("recall@")]
    return chance_recall(queries, ks, gallery, is_in_gallery, groups)


def with_float64(device: torch.device) -> torch.device:
    """Return the device if it has float64, else the CPU."""
    return device if device.type == "cuda" else torch.device("cpu")
