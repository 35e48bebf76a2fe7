"""The page that compares models: their figures, curves, flipped queries and classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from metric_learning.common.atomic import write_text
from metric_learning.common.log import log
from metric_learning.common.outputs import replaced_folder
from metric_learning.common.pages import templates_of
from metric_learning.engine.evaluate import caveats
from metric_learning.engine.options.evaluation import EmbeddingOptions
from metric_learning.engine.report import figures
from metric_learning.engine.report.comparison.flips import Flips, find_flips
from metric_learning.engine.report.comparison.models import (
    Compared,
    compare_models,
    frozen_baseline,
    name_models,
)
from metric_learning.engine.report.data import EXTREMES, QueryChoice, Subject
from metric_learning.engine.report.files import PAGE, TEMPLATES
from metric_learning.engine.report.pictures import Album, Row, album_of, hits_of, names_of
from metric_learning.retrieval.metrics import chance_scores, default_ks, summarise
from metric_learning.retrieval.tables import class_table

METRICS = {
    "recall@1": "Recall@1",
    "recall@10": "Recall@10",
    "map@r": "MAP@R",
    "r_precision": "R-precision",
    "map": "mAP",
}
NUM_HITS = 4  # neighbours that are shown of each model


def write_comparison(
    works: Sequence[EmbeddingOptions], baseline: str | None, folder: Path, choice: QueryChoice
) -> Path:
    """Write a folder of index.html as a whole, and return the page.

    `baseline` is what --baseline says, None where it is not given.
    """
    names, frozen = name_models(works), frozen_baseline(works[0], baseline)
    models = compare_models(works, names, frozen, choice)
    flips = _all_flips(models, works[0].machine.seed)
    for line in _caveats(models):
        log(line)
    for each in flips:
        log(_sentence(models, each))
    with replaced_folder(folder) as new:
        text = render_comparison(models, flips, choice)
        write_text(new / PAGE, text, errors="backslashreplace")

    file = folder / PAGE
    log(f"comparison: {file}, {file.stat().st_size / 1e6:.1f} MB, opens in any browser")
    return file


def render_comparison(
    models: Sequence[Compared], flips: Sequence[Flips], choice: QueryChoice = EXTREMES
) -> str:
    """Return the HTML of a comparison, one file that needs nothing else."""
    subject = models[0].subject
    runs = {model.name: model.subject.records for model in models}

    return (
        templates_of(TEMPLATES)
        .get_template("comparison.html")
        .render(
            subject=subject,
            caveats=_caveats(models),
            models=models,
            metrics=METRICS,
            rows=[_model_row(models, model, flips) for model in models],
            chances=_chances(models[0]),
            reference=_reference(models),
            recall_chart=figures.draw_recalls({model.name: model.curve for model in models}),
            loss_chart=figures.draw_runs(runs, "train", "loss"),
            tests_chart=figures.draw_runs(runs, "test", "recall@1"),
            groups=_groups(models, flips, choice),
            class_rows=_class_rows(models),
        )
    )


def _reference(models: Sequence[Compared]) -> Compared:
    """Return the first of the given models, with which the others are compared."""
    return next(model for model in models if not model.is_baseline)


def _all_flips(models: Sequence[Compared], seed: int) -> list[Flips]:
    reference = _reference(models)
    return [find_flips(reference, model, seed) for model in models if model is not reference]


def _caveats(models: Sequence[Compared]) -> list[str]:
    """Warn of the images, and of each checkpoint that tests on them chose."""
    subject = models[0].subject
    concerned: dict[str, list[str]] = {}
    for model in models:
        for line in model.subject.caveats:
            concerned.setdefault(line, []).append(model.name)
    chosen = [f"{line} ({', '.join(names)})" for line, names in concerned.items()]
    return [*chosen, *caveats.of_split(subject, default_ks(len(subject.gallery_rows)))]


def _sentence(models: Sequence[Compared], flips: Flips) -> str:
    name, other = flips.model.name, _reference(models).name
    return (
        f"{name} against {other}: recall@1 {flips.paired.difference:+.5f}, p = "
        f"{flips.paired.p_permutation:.4g}; {len(flips.gained)} queries that only {name} finds, "
        f"{len(flips.lost)} that only {other} finds"
    )


def _chances(model: Compared) -> dict[str, float]:
    points = zip(model.curve.ks.tolist(), model.curve.chances.tolist(), strict=True)
    return {f"recall@{k}": chance for k, chance in points} | chance_scores(*model.found.roles)


def _model_row(models: Sequence[Compared], model: Compared, flips: Sequence[Flips]) -> Row:
    """The figures of a model, and its difference from the first of the given ones."""
    curve, facts = model.curve, dict(model.subject.facts)
    interval = None
    if curve.low is not None and curve.high is not None:
        interval = curve.low[0], curve.high[0]
    return {
        "name": model.name,
        "what": facts.get("Loss", "no training" if model.is_baseline else ""),
        "checkpoint": facts.get("Checkpoint", ""),
        "weights": facts.get("Weights", ""),
        "metrics": summarise(model.found.scores),
        "interval": interval,
        "flips": next((each for each in flips if each.model is model), None),
    }


def _groups(models: Sequence[Compared], flips: Sequence[Flips], choice: QueryChoice) -> list[Row]:
    """The flipped queries of each model, as many as are chosen, with what both models found."""
    reference = _reference(models)
    album, wanted = album_of(models[0].subject), None
    if choice.texts:
        wanted = set(choice.places(reference.subject, reference.found))

    groups = []
    for each in flips:
        sides = []
        for places, only, other in (
            (each.gained, each.model, reference),
            (each.lost, reference, each.model),
        ):
            shown = [p for p in places.tolist() if wanted is None or p in wanted][: choice.count]
            queries = [_flipped(reference.subject, album, (only, other), place) for place in shown]
            sides.append({"only": only.name, "count": len(places), "queries": queries})
        groups.append({"name": each.model.name, "other": reference.name, "sides": sides})
    return groups


def _flipped(subject: Subject, album: Album, models: tuple[Compared, Compared], place: int) -> Row:
    """A query with the first neighbours of both models."""
    return {
        **album(int(models[0].found.rows[place])),
        "models": [
            {
                "name": model.name,
                "first_rank": int(model.found.scores.first_rank[place]),
                "hits": hits_of(subject, model.found, album, place)[:NUM_HITS],
            }
            for model in models
        ],
    }


def _class_rows(models: Sequence[Compared]) -> list[Row]:
    """Recall@1 of each class with each model; those that differ most come first."""
    tables = [
        {row.label: row for row in class_table(model.found.scores, model.subject.class_names)}
        for model in models
    ]
    subject = models[0].subject
    rows = []
    for label, first in tables[0].items():
        recalls = [table[label].scores["recall@1"] for table in tables]
        spread = float(np.ptp(recalls))
        about = names_of(subject, label)
        rows.append({**about, "queries": first.queries, "recalls": recalls, "spread": spread})
    return sorted(rows, key=lambda row: (-math.floor(1e6 * row["spread"]), row["name"]))
