"""The charts of a report, as SVG that takes its colours and font from the page around it."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from metric_learning.engine.evaluate.lettering import letter_legend, shorten
from metric_learning.engine.report.data import RecallCurve
from metric_learning.engine.run.records import curve_of

# Matplotlib knows no CSS variables: these stand for them until the SVG is written.
MODELS = ("--first", "--second", "--third", "--fourth")
VARIABLES = ("--ink", "--muted", "--line", *MODELS)
COLOURS = {f"#01020{number}": name for number, name in enumerate(VARIABLES, start=3)}
INK, MUTED, LINE, FIRST, SECOND, *_ = COLOURS
# Of several models; the later ones have the colours of the first again, and other lines.
LINES = [(colour, style) for style in ("-", "--") for colour in list(COLOURS)[3:]]
STEPS = (1, 2, 5, 10)  # of the ticks
LEGEND_LETTERS = 20  # of a name in a legend
FAR = 20  # times that one loss is larger than another
SIZE = (5.4, 3.5)  # in units of 72 px
FONT_SIZE = 11  # px; on a narrow phone the chart shrinks to 85 %
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "font.size": FONT_SIZE,
    "grid.color": LINE,
    "lines.linewidth": 2.0,
    **dict.fromkeys(("text.color", "axes.labelcolor"), INK),
    **dict.fromkeys(("xtick.labelcolor", "ytick.labelcolor"), INK),
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), MUTED),
    **dict.fromkeys(("axes.linewidth", "grid.linewidth"), 0.8),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    **dict.fromkeys(("axes.grid", "axes.axisbelow", "savefig.transparent"), True),
}


def draw_recall(curve: RecallCurve) -> str:
    """Draw Recall@K over K on a logarithmic axis, its interval as a band."""

    def draw(axes: Axes) -> None:
        axes.set_xscale("log")
        if curve.low is not None and curve.high is not None:
            axes.fill_between(
                curve.ks,
                100 * curve.low,
                100 * curve.high,
                color=FIRST,
                alpha=0.25,
                linewidth=0,
                label="95 % interval",
            )

        axes.plot(curve.ks, 100 * curve.recalls, color=FIRST, label="Recall@K")
        axes.plot(curve.ks, 100 * curve.chances, color=MUTED, linestyle=":", label="chance")
        _finish_recall(axes)

    return _to_svg("recall", "Recall@K in percent over K", draw)


def draw_recalls(curves: Mapping[str, RecallCurve]) -> str:
    """Draw Recall@K over K of several models on the same images, and chance."""

    def draw(axes: Axes) -> None:
        axes.set_xscale("log")
        for curve, (colour, style) in zip(curves.values(), LINES, strict=False):
            axes.plot(curve.ks, 100 * curve.recalls, style, color=colour, label=".")
        curve = next(iter(curves.values()))
        axes.plot(curve.ks, 100 * curve.chances, color=MUTED, linestyle=":", label=".")
        _finish_recall(axes, [*curves, "chance"])

    return _to_svg("recalls", "Recall@K in percent over K", draw)


def _finish_recall(axes: Axes, names: Sequence[str] = ()) -> None:
    axes.set(xlabel="K, images looked at", ylabel="Recall@K, %")
    axes.set_ylim(0, 101)  # from 0, where chance is
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    _legend(axes, names)


def draw_similarities(
    positive: np.ndarray,
    negative: np.ndarray,
    names: tuple[str, str] = ("same class", "two classes"),
    unit: str = "pairs",
    threshold: float | None = None,
) -> str:
    """Draw histograms of the cosine similarities of pairs of one class and of two classes.

    Or of others: `names` are those of both kinds, `unit` is what they are. A line is at the
    `threshold`, if any.
    """

    def draw(axes: Axes) -> None:
        both = np.concatenate([positive, negative])
        edges = np.linspace(both.min() - 1e-3, both.max() + 1e-3, 61)
        for cosines, colour, style, label in (
            (negative, SECOND, "--", names[1]),
            (positive, FIRST, "-", names[0]),
        ):
            if len(cosines):
                shares = 100 * np.histogram(cosines, edges)[0] / len(cosines)
                axes.stairs(shares, edges, fill=True, color=colour, alpha=0.2)
                axes.stairs(
                    shares, edges, color=colour, linestyle=style, linewidth=2.0, label=label
                )

        if threshold is not None:
            axes.axvline(threshold, color=MUTED, linestyle=":", label="threshold")
        axes.set(xlabel="cosine similarity", ylabel=f"share of {unit}, %")
        axes.set_ylim(bottom=0)
        _legend(axes)

    return _to_svg(f"similarities-{unit}", f"Histograms of the similarities of {unit}", draw)


def draw_loss(records: Sequence[dict[str, Any]]) -> str:
    """Draw the training loss over the steps of a run; empty without a record of it."""
    steps, losses = curve_of(records, "train", "loss")

    def draw(axes: Axes) -> None:
        axes.plot(steps, losses, color=FIRST, **_marker(steps))
        axes.set(xlabel="step", ylabel="training loss")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=STEPS))

    return _to_svg("loss", "Training loss over steps", draw) if steps else ""


def draw_runs(runs: Mapping[str, Sequence[dict[str, Any]]], kind: str, value: str) -> str:
    """Draw a value of the records of a kind over the steps of several runs; empty without any.

    Losses of one sign that lie far apart are on a logarithmic axis.
    """
    curves = {name: curve_of(records, kind, value) for name, records in runs.items()}
    names = [name for name, (steps, _) in curves.items() if steps]
    if not names:
        return ""

    def draw(axes: Axes) -> None:
        for (steps, values), (colour, style) in zip(curves.values(), LINES, strict=False):
            shown = np.array(values) * (100 if kind == "test" else 1)
            if steps:
                axes.plot(steps, shown, style, color=colour, label=".", **_marker(steps))

        if kind == "test":
            axes.set(ylabel="Recall@1 of the tests, %", ylim=(-2, 102))
        else:
            axes.set(ylabel="training loss")
            scale_losses(axes, (losses for _, losses in curves.values()))
        axes.set(xlabel="step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=STEPS))
        _legend(axes, names)

    return _to_svg(f"runs-{kind}", f"{value} over steps", draw)


def scale_losses(axes: Axes, curves: Iterable[Sequence[float]]) -> None:
    """Make an axis logarithmic where losses of several kinds lie too far apart to be told apart."""
    values = [value for curve in curves for value in curve]
    if not values or min(values) <= 0 or max(values) <= FAR * min(values):
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def draw_tests(records: Sequence[dict[str, Any]]) -> str:
    """Draw the recall within training batches and the tests of a run; empty without records."""
    curves = [
        (*curve_of(records, kind, name), colour, style, label)
        for kind, name, colour, style, label in (
            ("train", "recall", MUTED, ":", "in batches"),
            ("test", "recall@1", FIRST, "-", "Recall@1"),
            ("test", "recall@10", SECOND, "--", "Recall@10"),
            ("test", "recall@1_chance", MUTED, "-.", "chance at 1"),
        )
    ]
    curves = [curve for curve in curves if curve[0]]

    def draw(axes: Axes) -> None:
        for steps, recalls, colour, style, label in curves:
            percent = 100 * np.array(recalls)
            axes.plot(steps, percent, style, color=colour, label=label, **_marker(steps))
        axes.set(xlabel="step", ylabel="recall, %", ylim=(-2, 102))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=STEPS))
        _legend(axes)

    return _to_svg("tests", "Recall over steps", draw) if curves else ""


def _legend(axes: Axes, names: Sequence[str] = ()) -> None:
    """Put the legend above the chart, where it covers nothing; of models it has their `names`."""
    legend = axes.legend(
        loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=3, columnspacing=1.2, handlelength=1.8
    )
    if names:
        letter_legend(legend, [shorten(name, LEGEND_LETTERS) for name in names])


def _marker(steps: Sequence[int]) -> dict[str, Any]:
    return {"marker": "o" if len(steps) <= 20 else "", "markersize": 4}


def _to_svg(name: str, title: str, draw: Callable[[Axes], None]) -> str:
    """Run a drawing function and return SVG to put into a page; `name` keeps its ids apart."""
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}):
        figure = Figure(SIZE, layout="constrained")
        draw(figure.subplots())
        file = io.StringIO()
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(file, format="svg", metadata=nothing)

    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]  # without the XML declaration
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<g id=[^>]*>", "<g>", svg)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: var(--font)", svg)
    svg = re.sub(r"font: (\S+px) [^;\"]*", r"font: \1 var(--font)", svg)
    for colour, variable in COLOURS.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg.replace("<svg ", f'<svg class="chart" role="img" aria-label="{title}" ', 1)
