"""The page of a report: every picture and table of it, put into one HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from metric_learning.common.atomic import write_text
from metric_learning.common.log import log
from metric_learning.common.outputs import replaced_folder
from metric_learning.common.pages import templates_of
from metric_learning.engine.evaluate import caveats
from metric_learning.engine.evaluate.open_set import answer_open_set, measure_open_set
from metric_learning.engine.evaluate.scoring import with_float64
from metric_learning.engine.report import data, embedding_map, figures
from metric_learning.engine.report.files import MAP, PAGE, PICTURES, TEMPLATES
from metric_learning.engine.report.pictures import (
    Album,
    Row,
    album_of,
    jpeg_of,
    names_of,
    query_row,
)
from metric_learning.engine.report.plots import plot_map
from metric_learning.retrieval.metrics import DEFAULT_KS, chance_scores, default_ks, summarise
from metric_learning.retrieval.open_set import rates_at
from metric_learning.retrieval.significance import MIN_CLASSES
from metric_learning.retrieval.tables import class_table, confusions, worst_first

NUM_PAIRS, NUM_CONFUSIONS = 100_000, 12
MAP_PIXELS = 48  # longer side of a picture on the map; shown smaller
QUERY_KINDS = {
    "chosen": ("Chosen", "Those that --show names: {found:,} queries, {shown:,} of them here."),
    "best": ("Best", "Those with the highest average precision, of as many classes as possible."),
    "random": ("Random", "Drawn at random from all queries: what to expect."),
    "worst": (
        "Worst",
        "Those whose first right image comes last, of as many classes as possible.",
    ),
}
METRIC_NAMES = {
    "map@r": ("MAP@R", "average precision among the first R; R: positives of a query"),
    "r_precision": ("R-precision", "right images among the first R"),
    "map": ("mAP", "average precision over all positives"),
    "mrr": ("MRR", "mean of 1 / rank of the first right image"),
}


def write_report(
    subject: data.Subject,
    folder: Path,
    device: torch.device,
    seed: int,
    choice: data.QueryChoice = data.EXTREMES,
    unknown: data.UnknownQueries | None = None,
) -> Path:
    """Write a folder of index.html and map.png as a whole, and return the page."""
    log(f"{len(subject.labels)} embeddings; now the queries, the classes and the map")
    for line in _caveats(subject):
        log(line)
    with replaced_folder(folder, keep=PICTURES) as new:
        text = render(subject, with_float64(device), seed, new / MAP, choice, unknown)
        write_text(new / PAGE, text, errors="backslashreplace")

    file = folder / PAGE
    if (folder / MAP).is_file():
        log(f"map of the embeddings: {folder / MAP}")
    log(f"report: {file}, {file.stat().st_size / 1e6:.1f} MB, opens in any browser")
    return file


def render(
    subject: data.Subject,
    device: str | torch.device = "cpu",
    seed: int = 0,
    picture: Path | None = None,
    choice: data.QueryChoice = data.EXTREMES,
    unknown: data.UnknownQueries | None = None,
) -> str:
    """Return the HTML of a report, one file that needs nothing else.

    The map of the embeddings is also drawn to the PNG file `picture`, if any. Of `unknown` queries
    it tells where they are given. Raises ValueError where no query has a positive, an embedding is
    not finite, or an image cannot be read.
    """
    found = data.find(subject, device)
    curve = data.recall_curve(found, seed)
    album = album_of(subject)
    layout = embedding_map.map_embeddings(subject.embeddings, subject.labels, seed)
    if picture is not None and layout is not None:
        plot_map(layout, subject.labels, subject.class_names, picture)

    return (
        templates_of(TEMPLATES)
        .get_template("report.html")
        .render(
            subject=subject,
            found=found,
            caveats=_caveats(subject),
            tiles=_tiles(found, curve),
            loss_chart=figures.draw_loss(subject.records),
            tests_chart=figures.draw_tests(subject.records),
            recall_chart=figures.draw_recall(curve),
            recall_rows=_recall_rows(curve),
            similarities=_similarities(subject, seed),
            open_set=_open_set(subject, device, seed, unknown),
            query_groups=_query_groups(subject, found, album, choice, seed),
            has_tests=any(record["kind"] == "test" for record in subject.records),
            class_rows=worst_first(
                class_table(found.scores, subject.class_names, subject.super_classes)
            ),
            confused=_confused(subject, found, album),
            map=None if layout is None else _map(subject, layout),
        )
    )


def _caveats(subject: data.Subject) -> list[str]:
    of_split = caveats.of_split(subject, default_ks(len(subject.gallery_rows)))
    return [*subject.caveats, *of_split]


def _tiles(found: data.Found, curve: data.RecallCurve) -> list[dict[str, str]]:
    """Name, value and explanation of the key numbers."""
    metrics = summarise(found.scores)
    interval = f"fewer than {MIN_CLASSES} classes: no interval"
    if curve.low is not None and curve.high is not None:
        interval = f"95 % interval {100 * curve.low[0]:.1f} to {100 * curve.high[0]:.1f}"

    chance = dict(zip(curve.ks.tolist(), curve.chances.tolist(), strict=True))
    others = chance_scores(*found.roles)
    found_in = [
        (
            name.capitalize(),
            value,
            f"{f'{interval}; ' if name == 'recall@1' else ''}"
            f"chance {100 * chance[int(name.removeprefix('recall@'))]:.2f} %",
        )
        for name, value in metrics.items()
        if name.startswith("recall@")
    ]
    found_in += [
        (name, metrics[metric], f"{note}; chance {100 * others[metric]:.2f} %")
        for metric, (name, note) in METRIC_NAMES.items()
    ]
    left_out = f"{metrics['queries_without_positive']:,}"
    note = f"left out; {metrics['queries']:,} queries count"
    return [
        *(
            {"name": name, "value": f"{100 * value:.2f} %", "note": n}
            for name, value, n in found_in
        ),
        {"name": "Queries without positive", "value": left_out, "note": note},
    ]


def _recall_rows(curve: data.RecallCurve) -> list[Row]:
    """K, Recall@K, chance and interval at the powers of ten and at the end of the curve."""
    return [
        {
            "k": int(curve.ks[place]),
            "recall": curve.recalls[place],
            "chance": curve.chances[place],
            "low": None if curve.low is None else curve.low[place],
            "high": None if curve.high is None else curve.high[place],
        }
        for place in np.flatnonzero(np.isin(curve.ks, (*DEFAULT_KS, curve.ks[-1])))
    ]


def _similarities(subject: data.Subject, seed: int) -> Row:
    """Chart and quantiles of the similarities of sampled pairs."""
    cosines = {}
    for name, is_positive in (("same class", True), ("two classes", False)):
        pairs = data.sample_pairs(subject, is_positive, NUM_PAIRS, seed)
        cosines[name] = data.pair_cosines(subject.embeddings, *pairs)

    positive, negative = cosines.values()
    return {
        "chart": figures.draw_similarities(positive, negative),
        "num_pairs": NUM_PAIRS,
        "rows": [
            {"name": name, "quantiles": np.quantile(values, (0.05, 0.5, 0.95))}
            for name, values in cosines.items()
            if len(values)
        ],
        "order": float(np.mean(positive > negative)) if len(negative) else None,
    }


def _open_set(
    subject: data.Subject,
    device: str | torch.device,
    seed: int,
    unknown: data.UnknownQueries | None,
) -> Row | None:
    """How well a threshold tells queries of unknown classes from others; None: not asked for."""
    if unknown is None:
        return None
    test = answer_open_set(subject, subject.embeddings, unknown.share, seed, device)
    metrics, answers = measure_open_set(test), test.answers
    thresholds = [("greatest F1", metrics["open_set_threshold"])]
    prefix = "dir_threshold@far="
    thresholds += [
        (f"at most {100 * float(name.removeprefix(prefix)):g} % false answers", value)
        for name, value in metrics.items()
        if name.startswith(prefix)
    ]
    if unknown.threshold is not None:
        thresholds.append(("given", unknown.threshold))

    shown = thresholds[0 if unknown.threshold is None else -1][1]
    names = ("known", "unknown")
    return {
        "metrics": metrics,
        "chart": figures.draw_similarities(answers.known, answers.unknown, names, "queries", shown),
        "rows": [
            {"name": name, "cosine": cosine, **rates_at(answers, cosine)}
            for name, cosine in thresholds
        ],
    }


def _query_groups(
    subject: data.Subject,
    found: data.Found,
    album: Album,
    choice: data.QueryChoice,
    seed: int,
) -> list[Row]:
    """The queries that were asked for, best, random and worst ones, with their first neighbours."""
    places: dict[str, Sequence[int]] = {}
    wanted = choice.places(subject, found)
    if choice.texts:
        places["chosen"] = wanted[: choice.count]
    for kind, chosen in data.choose_queries(found.scores, choice.count, seed).items():
        places[kind] = chosen.tolist()

    return [
        {
            "name": QUERY_KINDS[kind][0],
            "sentence": QUERY_KINDS[kind][1].format(found=len(wanted), shown=len(shown)),
            "queries": [query_row(subject, found, album, place) for place in shown],
        }
        for kind, shown in places.items()
    ]


def _confused(subject: data.Subject, found: data.Found, album: Album) -> list[Row]:
    """The pairs of classes that are confused most often, each with an example."""
    neighbour_labels = subject.labels[found.neighbours[:, 0]]
    rows = []
    for label, wrong, count in confusions(neighbour_labels, found.scores.labels)[:NUM_CONFUSIONS]:
        place = data.confusion_example(found, neighbour_labels, (label, wrong))

        rows.append(
            {
                "count": count,
                "share": count / int((found.scores.labels == label).sum()),
                "query": album(int(found.rows[place])),
                "neighbour": album(int(found.neighbours[place, 0])),
                "cosine": float(found.cosines[place, 0]),
            }
        )
    return rows


def _map(subject: data.Subject, layout: embedding_map.EmbeddingMap) -> Row:
    """The map of the embeddings, its images grouped by class."""
    labels = subject.labels[layout.rows]
    classes = []
    for number, label in enumerate(np.unique(labels).tolist()):
        own = labels == label
        pictures = np.flatnonzero(own & layout.is_picture)
        classes.append(
            {
                "number": number,
                **names_of(subject, label),
                "hue": round(number * 137.508) % 360,  # the golden angle keeps neighbours apart
                "dots": layout.centres[own & ~layout.is_picture].round(1).tolist(),
                "pictures": [
                    (
                        *layout.centres[place].round(1),
                        jpeg_of(subject.read_image(int(layout.rows[place])), MAP_PIXELS),
                    )
                    for place in pictures
                ],
                "count": int(own.sum()),
            }
        )

    return {
        "method": layout.method,
        "num_images": len(layout.rows),
        "num_pictures": int(layout.is_picture.sum()),
        "width": embedding_map.WIDTH,
        "height": embedding_map.HEIGHT,
        "size": embedding_map.PICTURE,
        "classes": classes,
    }
