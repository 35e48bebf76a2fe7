"""When a search has no answer: the cosine below which the nearest image of an index is "none"."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from metric_learning.common.log import log
from metric_learning.common.schema import is_finite, is_object
from metric_learning.engine.options.parts import DataOptions, MachineOptions
from metric_learning.engine.options.tables import AUTO, OFF
from metric_learning.reader import ImageSet
from metric_learning.reader.sets.boxes import keys_of
from metric_learning.retrieval.indexes import SearchIndex
from metric_learning.retrieval.milvus import MilvusIndex
from metric_learning.retrieval.open_set import Answers, best_threshold, rates_at
from metric_learning.retrieval.positives import Positives
from metric_learning.retrieval.search import nearest

THRESHOLD = "unknown_threshold"  # in the metadata of an index
MOST_QUERIES = 2000  # that a threshold is calibrated with


class Answer(list[dict[str, Any]]):
    """The neighbours of a query, nearest first, as a list that says whether they are an answer."""

    is_none: bool = False  # whether the nearest one is below the threshold


def answer_of(neighbours: Sequence[dict[str, Any]], threshold: float | None) -> Answer:
    """Return neighbours, each with its `cosine`, as an answer, which is "none" or not."""
    answer = Answer(neighbours)
    answer.is_none = is_none(neighbours[0]["cosine"], threshold)
    return answer


def check_threshold(given: Any) -> None:
    """Raise ValueError for what no program can ask for as a threshold, see `threshold_of`."""
    if given in (None, AUTO, OFF) or (is_finite(given) and -1 <= given <= 1):
        return
    raise ValueError(
        f"expected unknown_threshold to be a cosine of -1 to 1, {AUTO}, {OFF} or None, found "
        f"{given!r}"
    )


def is_none(cosine: float, threshold: float | None) -> bool:
    """Whether a neighbour of this cosine is no answer; never where there is no threshold."""
    return threshold is not None and cosine < threshold


def threshold_of(
    search_index: SearchIndex | MilvusIndex, given: str | float | None, is_image: bool = True
) -> float | None:
    """Return the cosine below which a neighbour is "none", by what --unknown_threshold says.

    Args:
        search_index: the index, which may hold a threshold.
        given: a cosine, "auto" for that of the index, "off" for none; None: that of the index, if
            it has one.
        is_image: whether an image asks; cosines to words are others, and have no threshold but a
            given one.

    Raises:
        ValueError: the index is asked for a threshold, and holds none.
    """
    kept: Any = search_index.metadata.get(THRESHOLD)
    if given == OFF or (given is None and (kept is None or not is_image)):
        return None
    if given is not None and given != AUTO:
        return float(given)
    if not is_image:
        raise ValueError("--unknown_threshold=auto is of images, not of words: give a cosine")
    cosine: Any = kept.get("cosine") if is_object(kept) else None
    if not is_finite(cosine):
        raise ValueError(
            "--unknown_threshold=auto: the index holds no threshold: build it with that flag, or "
            "give a cosine such as --unknown_threshold=0.5"
        )
    return float(cosine)


class Images(NamedTuple):
    """Images with their features (N, D) float32, and what they are, for people."""

    features: np.ndarray
    image_set: ImageSet
    what: str

    @property
    def labels(self) -> np.ndarray:
        """Their classes (N,) int64, or empty where these are not known."""
        is_known = bool(self.image_set.class_names)
        return self.image_set.labels if is_known else np.empty(0, np.int64)


class Found(NamedTuple):
    """What Q queries find among some images, with their own class there, and without it."""

    is_right: np.ndarray  # (Q,) bool, whether the nearest one is of their class
    known: np.ndarray  # (Q,) float32, its cosine
    unknown: np.ndarray  # (Q,) float32, that of the nearest one of another class
    num_own: np.ndarray  # (Q,) int64, others of their class

    def joined(self, other: Found) -> Found:
        """Return what they find among these images and those of another search."""
        is_nearer = self.known >= other.known
        return Found(
            np.where(is_nearer, self.is_right, other.is_right),
            np.maximum(self.known, other.known),
            np.maximum(self.unknown, other.unknown),
            self.num_own + other.num_own,
        )


def calibrating_images(data: DataOptions) -> ImageSet | None:
    """Open the val split of a data set; None where it has none, or is not here."""
    try:
        return data.load("val").require_whole() if "val" in data.splits else None
    except (FileNotFoundError, ValueError):
        return None


def choose_threshold(
    asked: str | float | None, tried: Images | None, indexed: Images, machine: MachineOptions
) -> dict[str, Any]:
    """Return what an index keeps in its metadata of --unknown_threshold, and log it.

    A threshold that is given is kept as it is, with its error rates where classes are known; "auto"
    chooses one. It is `tried` with these images, None: with those of the index. Raises ValueError
    where that cannot be, see `calibrate`.
    """
    if asked in (None, OFF):
        return {}
    given = None if asked == AUTO else float(asked or 0.0)
    images = tried or indexed
    if given is not None and not _has_two_classes(images.labels):
        return {THRESHOLD: {"cosine": given}}
    threshold = calibrate(images, indexed, machine, given)
    log(describe(threshold))
    return {THRESHOLD: threshold}


def calibrate(
    tried: Images, indexed: Images, machine: MachineOptions, given: float | None = None
) -> dict[str, Any]:
    """Choose a threshold with images of known classes, and say how often it errs on them.

    Each of up to 2,000 images asks the index twice, as if all that are tried were in it: once with
    its class there, itself left out, and once without its class. Images without another one of
    their class ask in the second way alone. The threshold with the greatest F1 is taken, unless one
    is `given`, see `retrieval.open_set`.

    Args:
        tried: the images that ask; may be those that are indexed.
        indexed: the images of the index. Where their classes are not known, or these are the same,
            those that are tried ask each other alone.
        machine: where it is computed, and the seed of the draw.
        given: a threshold that is tried, not chosen.

    Returns:
        `cosine`, the threshold; the rates of `rates_at`; `queries`; and what the `images` are.

    Raises:
        ValueError: there are no two classes, of which one has two images.
    """
    labels = tried.labels
    if not _has_two_classes(labels):
        raise ValueError(
            f"--unknown_threshold=auto needs two classes, and two images of one: the {tried.what} "
            "have none such; give a cosine, or --dataset and a split of known classes"
        )
    rows = np.random.default_rng(machine.seed).permutation(len(labels))[:MOST_QUERIES]
    rows.sort()
    asking = tried.features[rows], labels[rows]
    found = _ask(*asking, tried.features, labels, rows, machine)
    if tried is not indexed and len(indexed.labels) > 1:
        others = _in_numbering_of(tried, indexed)
        own_rows = _places(tried.image_set, rows, indexed.image_set)
        found = found.joined(_ask(*asking, indexed.features, others, own_rows, machine))

    is_known = found.num_own > 0
    answers = Answers(found.known[is_known], found.is_right[is_known], found.unknown)
    cosine = best_threshold(answers) if given is None else given
    rates = rates_at(answers, cosine)
    return {"cosine": cosine, **rates, "queries": len(rows), "images": tried.what}


def _ask(
    queries: np.ndarray,
    labels: np.ndarray,
    features: np.ndarray,
    classes: np.ndarray,
    own_rows: np.ndarray,
    machine: MachineOptions,
) -> Found:
    """Look queries (Q, D) of `labels` (Q,) up among images (N, D) of `classes` (N,).

    `own_rows` (Q,) are where they are there themselves, -1: nowhere.
    """
    num_own = Positives(labels, classes, own_rows).counts
    found, known = nearest(queries, features, 1, own_rows, machine.device)
    own_class = Positives(labels, classes, None).pairs(np.arange(len(labels)))
    _, unknown = nearest(queries, features, 1, None, machine.device, own_class)
    return Found(classes[found[:, 0]] == labels, known[:, 0], unknown[:, 0], num_own)


def _in_numbering_of(tried: Images, indexed: Images) -> np.ndarray:
    """Return the classes (N,) of indexed images by the numbers that those tried have them under.

    Classes of the same name are the same; others have numbers below 0.
    """
    numbers = {name: label for label, name in tried.image_set.class_names.items()}
    classes, inverse = np.unique(indexed.labels, return_inverse=True)
    names = [indexed.image_set.class_names[int(label)] for label in classes]
    found = [numbers.get(name, -1 - place) for place, name in enumerate(names)]
    return np.array(found, np.int64)[inverse]


def _places(images: ImageSet, rows: np.ndarray, others: ImageSet) -> np.ndarray:
    """Return where some images are among others, by their files and boxes: (Q,), -1: nowhere."""
    asking = images.select(rows)
    asked = {key: i for i, key in enumerate(keys_of(asking.paths, asking.boxes))}
    places = np.full(len(rows), -1, np.int64)
    for place, key in enumerate(keys_of(others.paths, others.boxes)):
        if key in asked:
            places[asked[key]] = place
    return places


def _has_two_classes(labels: np.ndarray) -> bool:
    """Whether there are two classes, of which one has two images."""
    counts = np.unique(labels, return_counts=True)[1]
    return len(counts) > 1 and bool(counts.max() > 1)


def describe(threshold: dict[str, Any]) -> str:
    """Say a calibrated threshold and its error rates in a line."""
    return (
        f"none below a cosine of {threshold['cosine']:.4f}: with {threshold['queries']} queries of "
        f"the {threshold['images']}, {threshold['missed']:.2%} of known classes have no answer and "
        f"{threshold['false_answers']:.2%} of unknown ones have one; F1 {threshold['f1']:.4f}"
    )


def mark_none(answers: Sequence[dict[str, Any]], threshold: float | None) -> None:
    """Note in answers to queries whether each is "none", by its nearest neighbour."""
    for answer in answers:
        answer["is_none"] = is_none(answer["neighbours"][0]["cosine"], threshold)
