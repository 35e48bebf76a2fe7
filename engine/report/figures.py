"""The charts of a report, as SVG that takes its colours and font from the page around it."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from metric_learning.engine.report.data import RecallCurve
from metric_learning.engine.run.records import curve_of

# Matplotlib knows no CSS variables: these stand for them until the SVG is written.
VARIABLES = ("--ink", "--muted", "--line", "--first", "--second")
COLOURS = {f"#01020{number}": name for number, name in enumerate(VARIABLES, start=3)}
INK, MUTED, LINE, FIRST, SECOND = COLOURS
STEPS = (1, 2, 5, 10)  # of the ticks
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
        axes.set(xlabel="K, images looked at", ylabel="Recall@K, %")
        lowest = curve.recalls if curve.low is None else curve.low
        axes.set_ylim(max(0.0, min(50.0, 100 * lowest[0] - 5)), 101)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        _legend(axes)

    return _to_svg("recall", "Recall@K in percent over K", draw)


def draw_similarities(positive: np.ndarray, negative: np.ndarray) -> str:
    """Draw histograms of the cosine similarities of pairs of one class and of two classes."""

    def draw(axes: Axes) -> None:
        both = np.concatenate([positive, negative])
        edges = np.linspace(both.min() - 1e-3, both.max() + 1e-3, 61)
        for cosines, colour, style, label in (
            (negative, SECOND, "--", "two classes"),
            (positive, FIRST, "-", "same class"),
        ):
            if len(cosines):
                shares = 100 * np.histogram(cosines, edges)[0] / len(cosines)
                axes.stairs(shares, edges, fill=True, color=colour, alpha=0.2)
                axes.stairs(
                    shares, edges, color=colour, linestyle=style, linewidth=2.0, label=label
                )

        axes.set(xlabel="cosine similarity", ylabel="share of pairs, %")
        axes.set_ylim(bottom=0)
        _legend(axes)

    return _to_svg("similarities", "Histograms of the similarities of pairs", draw)


def draw_loss(records: Sequence[dict[str, Any]]) -> str:
    """Draw the training loss over the steps of a run; empty without a record of it."""
    steps, losses = curve_of(records, "train", "loss")

    def draw(axes: Axes) -> None:
        axes.plot(steps, losses, color=FIRST, **_marker(steps))
        axes.set(xlabel="step", ylabel="training loss")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=STEPS))

    return _to_svg("loss", "Training loss over steps", draw) if steps else ""


def draw_tests(records: Sequence[dict[str, Any]]) -> str:
    """Draw the recall within training batches and the tests of a run; empty without records."""
    curves = [
        (*curve_of(records, kind, name), colour, style, label)
        for kind, name, colour, style, label in (
            ("train", "recall", MUTED, ":", "in batches"),
            ("test", "recall@1", FIRST, "-", "Recall@1"),
            ("test", "recall@10", SECOND, "--", "Recall@10"),
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


def _legend(axes: Axes) -> None:
    """Put the legend above the chart, where it covers nothing."""
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=3, columnspacing=1.2, handlelength=1.8
    )


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
