"""What a report is about: the model of a checkpoint on its images, or features in a folder."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from metric_learning.common.log import versions
from metric_learning.common.names import to_line
from metric_learning.common.schema import shown
from metric_learning.engine.embed.dump import META
from metric_learning.engine.embed.dump.opened import open_features
from metric_learning.engine.embed.dump.shards import refuse_incomplete
from metric_learning.engine.embed.embedder import open_split
from metric_learning.engine.evaluate.measures import warn_of_weights
from metric_learning.engine.evaluate.open_set import choose_unknown
from metric_learning.engine.evaluate.scoring import check_scorable
from metric_learning.engine.options.evaluation import EmbeddingOptions, default_flags
from metric_learning.engine.options.parts import DataOptions, pick
from metric_learning.engine.options.tables import SPLITS
from metric_learning.engine.report.data import EXTREMES, QueryChoice, Subject, UnknownQueries
from metric_learning.engine.run.chosen import describe_choice
from metric_learning.engine.run.records import read_records
from metric_learning.models.weights.fingerprint import RANDOM
from metric_learning.models.weights.metadata import own_metadata
from metric_learning.reader import ImageSet
from metric_learning.reader.sets.image_set import MAX_PIXELS, Decoding
from metric_learning.reader.sets.snapshots import snapshot_of
from metric_learning.reader.transforms import TRANSFORMS


def of_checkpoint(
    work: EmbeddingOptions,
    choice: QueryChoice = EXTREMES,
    unknown: UnknownQueries | None = None,
) -> Subject:
    """Embed the split with the model of a checkpoint; a run's records lie beside it.

    Raises ValueError, before the work, where no query can be scored, none is of the `choice`, or
    too few classes are left of the `unknown` ones.
    """
    embedder, image_set = open_split(work)
    warn_of_weights(embedder)
    check_scorable(image_set)
    choice.check(image_set.paths, image_set.labels, image_set.class_names)
    if unknown is not None:
        choose_unknown(image_set, unknown.share, work.machine.seed)
    embeddings = embedder.embed(image_set)
    stats = Path(work.weights).parent / "stats.jsonl"
    records = read_records(stats) if stats.is_file() else []
    return build_subject(image_set, embeddings, work.flags, embedder.work.meta, records)


def of_features(folder: Path, choice: QueryChoice = EXTREMES) -> Subject:
    """Read the features that infer.py wrote, and list the images that they are of."""
    refuse_incomplete(folder)
    if not (folder / "labels.txt").is_file():
        raise ValueError(
            f"{folder} holds no labels.txt: expected a folder that infer.py wrote for a --dataset, "
            "since a report needs classes"
        )

    found = open_features(folder)
    labels = found.labels
    assert labels is not None
    made_with: Mapping[str, Any] = {}
    whole: ImageSet | None = None
    if flags := found.meta.get("flags"):
        adopted = default_flags().adopted(str(folder / META), {}, flags)
        split = flags.get("split")
        if split not in SPLITS:
            raise ValueError(f"{folder / META} is damaged: its split is {shown(split)}")
        whole, broken = pick(DataOptions, adopted).load(split), found.meta.get("broken", {})
        names = map(whole.name_of, range(len(whole)))
        image_set = whole.select(np.flatnonzero([name not in broken for name in names]))
        made_with = adopted.values
    else:
        image_set = plain_image_set(list(found.paths), labels)

    if image_set.paths != list(found.paths) or not np.array_equal(image_set.labels, labels):
        raise ValueError(
            f"{folder}: the images are no longer those of the data set {image_set.name}: run "
            "infer.py again"
        )
    if whole is not None:
        check_unchanged(folder, whole, found.meta)
    choice.check(image_set.paths, image_set.labels, image_set.class_names)
    meta = own_metadata(found.meta.get("checkpoint"), folder / META) or {}
    return build_subject(image_set, np.asarray(found.embeddings), made_with, meta, [])


def check_unchanged(folder: Path, image_set: ImageSet, meta: Mapping[str, Any]) -> None:
    """Raise ValueError where images of features, or their classes, are not what `meta` tells."""
    kept = meta.get("depends_on", {}).get("images")
    if kept is None:
        raise ValueError(
            f"{folder} was written by an earlier version, which did not record what its images "
            "held: run infer.py again"
        )
    found = snapshot_of(image_set).digest()
    if found != kept:
        raise ValueError(
            f"{folder}: images or their classes have changed since ({kept}, not {found}): run "
            "infer.py again"
        )


def plain_image_set(paths: list[str], labels: np.ndarray) -> ImageSet:
    """List image files whose classes have no names, all of them query and gallery."""
    everywhere = np.ones(len(paths), dtype=bool)
    names = {label: str(label) for label in np.unique(labels).tolist()}
    return ImageSet("images", "test", paths, labels, names, everywhere, everywhere)


def build_subject(
    image_set: ImageSet,
    embeddings: np.ndarray,
    made_with: Mapping[str, Any],
    meta: Mapping[str, Any],
    records: list[dict[str, Any]],
) -> Subject:
    """Put together what is reported on.

    The embeddings (N, D) are in the order of the set, `made_with` the flags of the script that
    made them, `meta` what the checkpoint says, `records` those of its run; empty where unknown.
    """
    model = made_with.get("model", "unknown model")
    loss = meta.get("loss")  # converted weights have none
    facts = facts_of_images(image_set, embeddings.shape[1], made_with)
    warnings: list[str] = []
    if made_with and made_with.get("image_shape"):
        weights = str(made_with["pretrained_model"])
        facts += [("Weights", weights), ("Network input", _describe_input(made_with))]
        if weights != RANDOM:
            chosen, warnings = describe_choice(weights, meta, records, made_with)
            facts.append(("Checkpoint", chosen))
    if loss:
        options = meta.get("loss_options", {})  # which exported weights do not have
        listed = ", ".join(f"{name} {value}" for name, value in options.items())
        facts.append(("Loss", f"{loss} ({listed})" if listed else loss))
        trained_on = meta.get("dataset", "unknown images")
        facts.append(("Trained on", f"{trained_on}, {meta.get('step', 0):,} steps"))
    facts.append(("Versions", ", ".join(f"{name} {text}" for name, text in versions().items())))

    return Subject(
        title=f"{model}{f' with {loss}' if loss else ''} on {image_set.name}",
        facts=facts,
        flags=meta.get("flags", {}),
        records=records,
        embeddings=embeddings,
        labels=image_set.labels,
        class_names={label: to_line(name) for label, name in image_set.class_names.items()},
        is_query=image_set.is_query,
        is_gallery=image_set.is_gallery,
        groups=image_set.groups,
        read_image=partial(image_set.read_image, decoding=decoding_of(made_with)),
        super_classes={
            label: to_line(name) for label, name in (image_set.super_classes or {}).items()
        },
        paths=[to_line(str(path)) for path in image_set.paths],
        caveats=tuple(warnings),
    )


def _describe_input(made_with: Mapping[str, Any]) -> str:
    size = "{1} × {2} px".format(*made_with["image_shape"])
    return f"{size}, images squashed" if made_with.get("test_resize") == "squash" else size


def decoding_of(made_with: Mapping[str, Any]) -> Decoding:
    """Say how image files became the pixels that were embedded with these flags."""
    transform = made_with.get("transform") or "reference"
    return Decoding(TRANSFORMS[transform].alpha, made_with.get("max_pixels") or MAX_PIXELS)


def facts_of_images(
    image_set: ImageSet, dim: int, made_with: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """Say in (name, text) which images were embedded, and by what."""
    classes = made_with.get(f"{image_set.split}_classes")
    chosen = f", classes {classes}" if classes else ""
    roles = "each is query and gallery"
    if not image_set.is_self_retrieval:
        roles = (
            f"{image_set.is_query.sum():,} queries, {image_set.is_gallery.sum():,} in the gallery"
        )
    return [
        ("Model", f"{made_with.get('model', 'unknown model')}, {dim}-d embeddings"),
        ("Data set", f"{image_set.name}, {image_set.split} split{chosen}"),
        ("Images", f"{len(image_set):,}; {roles}"),
        ("Classes", f"{image_set.num_classes:,}"),
    ]
