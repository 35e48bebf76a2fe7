"""What a report shows, computed from embeddings: curves, pairs, chosen queries, confusions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch

from metric_learning.engine.evaluate.scoring import groups_by_role, labels_by_role
from metric_learning.retrieval.groups import Groups
from metric_learning.retrieval.inputs import find_own_rows
from metric_learning.retrieval.metrics import (
    DEFAULT_KS,
    chance_recall,
    count_positives,
    default_ks,
    score_queries,
)
from metric_learning.retrieval.positives import Positives
from metric_learning.retrieval.scores import QueryScores
from metric_learning.retrieval.search import nearest
from metric_learning.retrieval.significance import MIN_CLASSES, class_interval
from metric_learning.retrieval.unit import unit_rows

CURVE_POINTS = 48
NUM_NEIGHBOURS = 6


@dataclass(frozen=True)
class Subject:
    """Embeddings of a split of a data set, and what is known of where they come from.

    Attributes:
        facts: (name, text) of what was evaluated.
        flags, records: of the training run, the latter its stats.jsonl; empty where there is none.
        embeddings: (N, D) float32, not normalised.
        labels: (N,) int64.
        class_names, super_classes: label -> name; the latter empty where there are none.
        is_query, is_gallery: (N,) bool, images that search, and images that are searched.
        groups: (N,) int64, see `retrieval.groups`; None: there are none.
        read_image: row -> (H, W, 3) uint8 RGB.
        paths: N files or names of the images; empty where they are unknown.
        caveats: lines about what makes the figures mean less than they seem to.
    """

    title: str
    facts: list[tuple[str, str]]
    flags: dict[str, Any]
    records: list[dict[str, Any]]
    embeddings: np.ndarray
    labels: np.ndarray
    class_names: dict[int, str]
    is_query: np.ndarray
    is_gallery: np.ndarray
    read_image: Callable[[int], np.ndarray]
    super_classes: dict[int, str] = field(default_factory=dict)
    groups: np.ndarray | None = None
    paths: Sequence[str] = ()
    caveats: tuple[str, ...] = ()

    @property
    def is_self_retrieval(self) -> bool:
        """Whether every image is both query and gallery."""
        return bool(self.is_query.all() and self.is_gallery.all())

    @cached_property
    def query_rows(self) -> np.ndarray:
        """Rows of the images that search, (Q,) int64."""
        return np.flatnonzero(self.is_query)

    @cached_property
    def gallery_rows(self) -> np.ndarray:
        """Rows of the images that are searched, (G,) int64."""
        return np.flatnonzero(self.is_gallery)


@dataclass(frozen=True)
class Found:
    """What the Q queries of a subject that have a positive found.

    Attributes:
        rows: (Q,) int64, their rows in the subject.
        neighbours, cosines: (Q, k) int64 rows of their nearest gallery images, and (Q, k) float32.
        num_findable: gallery images that any query can find: all but itself, and but those that
            its group rules out.
        roles: labels of all that search and of the gallery, see `labels_by_role`.
    """

    scores: QueryScores
    rows: np.ndarray
    neighbours: np.ndarray
    cosines: np.ndarray
    num_findable: int
    roles: tuple[np.ndarray, np.ndarray | None, np.ndarray | None, Groups | None]


def find(subject: Subject, device: str | torch.device = "cpu") -> Found:
    """Score every query of a subject and look up its first neighbours, or raise ValueError."""
    queries, gallery = subject.query_rows, subject.gallery_rows
    is_self = subject.is_self_retrieval
    own_rows = find_own_rows(subject.is_query, subject.is_gallery)
    roles, groups = labels_by_role(subject), groups_by_role(subject)
    num_findable = int(count_positives(*roles)[1].min())
    scores = score_queries(
        subject.embeddings[queries],
        subject.labels[queries],
        default_ks(len(gallery)),
        gallery_embeddings=None if is_self else subject.embeddings[gallery],
        gallery_labels=None if is_self else subject.labels[gallery],
        device=device,
        own_rows=own_rows,
        groups=groups and groups.queries,
        gallery_groups=None if groups is None or is_self else groups.gallery,
    )

    rows = queries[scores.rows]
    neighbours, cosines = nearest(
        subject.embeddings[rows],
        subject.embeddings[gallery],
        min(NUM_NEIGHBOURS, num_findable),
        own_rows=None if own_rows is None else own_rows[scores.rows],
        device=device,
        left_out=_ruled_out(subject, rows),
    )
    return Found(scores, rows, gallery[neighbours], cosines, num_findable, roles)


def _ruled_out(subject: Subject, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Return pairs of queries `rows` and gallery images, by place, that share class and group."""
    groups, gallery = subject.groups, subject.gallery_rows
    if groups is None:
        return None
    by_group = Groups(groups[rows], groups[gallery])
    positives = Positives(subject.labels[rows], subject.labels[gallery], None, by_group)
    queries, images = positives.pairs(np.arange(len(rows)))
    is_same = by_group.are_same(queries, images)
    return queries[is_same], images[is_same]


@dataclass(frozen=True)
class RecallCurve:
    """Recall@K over K.

    Attributes:
        ks: (K,) int64 ascending, 1 to the number of images that can be found.
        recalls: (K,) float64 fractions.
        chances: (K,) float64, Recall@K of random embeddings.
        low, high: (K,) float64, ends of the 95 % interval; None of fewer than 6 classes.
    """

    ks: np.ndarray
    recalls: np.ndarray
    chances: np.ndarray
    low: np.ndarray | None
    high: np.ndarray | None


def recall_curve(found: Found, seed: int = 0) -> RecallCurve:
    """Compute Recall@K for about 50 values of K, with chance and 95 % intervals over classes."""
    steps = np.geomspace(1, found.num_findable, CURVE_POINTS).round()
    ks = np.union1d(steps, [k for k in DEFAULT_KS if k <= found.num_findable]).astype(np.int64)
    is_found = found.scores.first_rank[:, None] <= ks  # QxK
    low = high = None
    if len(np.unique(found.scores.labels)) >= MIN_CLASSES:
        low, high = class_interval(is_found, found.scores.labels, seed=seed)
    labels, gallery, is_in_gallery, groups = found.roles
    by_chance = chance_recall(labels, ks.tolist(), gallery, is_in_gallery, groups)
    chances = np.array([*by_chance.values()])
    return RecallCurve(ks, is_found.mean(0), chances, low, high)


def sample_pairs(
    subject: Subject, is_positive: bool, num_pairs: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Draw pairs of a query and another gallery image of one class, or of two; all equally likely.

    Returns their rows, (num_pairs,) int64 each, with replacement; fewer where groups rule some of
    one class out, and none where there is no pair.
    """
    rng = np.random.default_rng(seed)
    queries, gallery = subject.query_rows, subject.gallery_rows
    order = np.argsort(subject.labels[gallery], kind="stable")
    partners = gallery[order]  # rows, class after class
    partner_labels = subject.labels[partners]
    starts = np.searchsorted(partner_labels, subject.labels[queries], side="left")
    sizes = np.searchsorted(partner_labels, subject.labels[queries], side="right") - starts

    place_of = np.full(len(subject.labels), len(partners))  # among the partners
    place_of[partners] = np.arange(len(partners))
    own = place_of[queries]  # the query itself
    has_own = own < len(partners)
    choices = sizes - has_own if is_positive else len(partners) - sizes
    if choices.sum() == 0:
        return np.empty(0, np.int64), np.empty(0, np.int64)

    drawn = rng.choice(len(queries), num_pairs, p=choices / choices.sum())
    places = rng.integers(choices[drawn])
    if is_positive:
        places += starts[drawn]
        places += places >= own[drawn]  # step over the query itself
    else:
        places += np.where(places >= starts[drawn], sizes[drawn], 0)  # step over the class
    first, second = queries[drawn], partners[places]
    if is_positive and subject.groups is not None:
        is_pair = ~Groups(subject.groups, subject.groups).are_same(first, second)
        return first[is_pair], second[is_pair]
    return first, second


def pair_cosines(embeddings: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cosine similarities of pairs of rows, (P,) float32."""
    unit = unit_rows(embeddings)
    blocks = zip(*(torch.as_tensor(rows).split(4096) for rows in (first, second)), strict=True)
    return torch.cat([(unit[left] * unit[right]).sum(1) for left, right in blocks]).numpy()


@dataclass(frozen=True)
class QueryChoice:
    """Which queries a page shows beside the best, random and worst ones.

    Attributes:
        texts: parts of paths or of names of classes, of capital or small letters.
        count: queries that are shown of each kind.
    """

    texts: tuple[str, ...] = ()
    count: int = 8

    def check(self, paths: Sequence[str], labels: np.ndarray, names: dict[int, str]) -> None:
        """Raise ValueError where no image has a text in its path or in the name of its class."""
        for text in self.texts:
            if not any(
                _has(text, path, names[label])
                for path, label in zip(paths, labels.tolist(), strict=True)
            ):
                raise ValueError(
                    f"--show={text}: none of {len(paths):,} images has that in its path or in the "
                    "name of its class: give a part of one"
                )

    def places(self, subject: Subject, found: Found) -> list[int]:
        """Return the places of the queries that have one of the texts, in their order."""
        paths = subject.paths or [""] * len(subject.labels)
        return [
            place
            for place, row in enumerate(found.rows.tolist() if self.texts else ())
            if any(
                _has(text, str(paths[row]), subject.class_names[int(subject.labels[row])])
                for text in self.texts
            )
        ]


@dataclass(frozen=True)
class UnknownQueries:
    """What a page tells of queries whose class is not in the gallery.

    Attributes:
        share: of the classes, which are left out of the gallery.
        threshold: a cosine whose rates are told; None: those of others alone.
    """

    share: float
    threshold: float | None = None


EXTREMES = QueryChoice()  # the best, random and worst alone


def _has(text: str, *names: str) -> bool:
    return any(text.lower() in name.lower() for name in names)


def choose_queries(scores: QueryScores, count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Choose `count` places of queries of each kind: "best", "random" and "worst", (count,) int64.

    The best have the highest average precision, the worst find their first positive last; among
    them is one query per class as long as there are classes enough.
    """
    shuffled = np.random.default_rng(seed).permutation(len(scores))
    best = shuffled[np.argsort(-scores.columns["map"][shuffled], kind="stable")]
    worst = shuffled[np.argsort(-scores.first_rank[shuffled], kind="stable")]
    return {
        "best": one_per_class(best, scores.labels, count),
        "random": shuffled[:count],
        "worst": one_per_class(worst, scores.labels, count),
    }


def one_per_class(order: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """Return the first `count` of `order`, taking a class again only after all others."""
    rounds: dict[int, int] = {}  # how often a class came before
    keys = []
    for place, label in enumerate(labels[order].tolist()):
        rounds[label] = rounds.get(label, -1) + 1
        keys.append((rounds[label], place))
    chosen = sorted(sorted(keys)[:count], key=lambda key: key[1])
    return order[[place for _, place in chosen]]


def confusion_example(found: Found, neighbour_labels: np.ndarray, pair: tuple[int, int]) -> int:
    """Return the place of the query that found the wrong class of a pair at the highest cosine."""
    label, wrong = pair
    is_confused = (found.scores.labels == label) & (neighbour_labels == wrong)
    return int(np.argmax(np.where(is_confused, found.cosines[:, 0], -np.inf)))
