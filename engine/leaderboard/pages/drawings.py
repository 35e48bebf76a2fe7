"""The drawings of a board's page, as SVG that takes its colours and font from the page around it.

matplotlib, which draws the charts of a report, takes a tenth of a second for each; a board has
hundreds of these, and draws them anew each time that a training has ended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import LogLocator, MaxNLocator

STEPS = (1, 2, 5, 10)  # of the ticks
MARGIN = 0.04  # of an axis, free at both ends
INTERVAL = (184, 26)  # px, the drawing of an interval
SCALE = 16  # px, the height of the numbers of its axis
EDGE = 16.0  # px beside it, in which half a text of a tick has room
PLOT = (264, 168)  # px, the plot of trials over a parameter
LEFT, RIGHT, TOP, BOTTOM = 40.0, 12.0, 12.0, 38.0  # px around it
MOST_CHOICES = 8  # that are named below a plot
LONGEST_CHOICE = 9  # letters of one there


@dataclass(frozen=True)
class Axis:
    """A range of values, and the pixels that stand for it.

    Attributes:
        low, high: the ends, which lie a margin inside.
        start, end: their pixels.
        is_log: pixels count by the logarithm.
        factor: of the numbers that its ticks show.
    """

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False
    factor: float = 1.0

    @classmethod
    def around(cls, values: Sequence[float], **others: Any) -> Axis:
        """Return an axis that holds all values."""
        low, high = min(values), max(values)
        if low == high:
            reach = abs(low) / 2 or 1.0
            low, high = low - reach, high + reach
        return cls(low, high, **others)

    def at(self, value: float) -> float:
        """Return the pixel of a value."""
        ends = np.array([self.low, self.high, value], float)
        low, high, place = np.log(ends) if self.is_log else ends
        margin = MARGIN * (high - low)
        share = (place - low + margin) / (high - low + 2 * margin)
        return round(float(self.start + share * (self.end - self.start)), 1)

    @cached_property
    def ticks(self) -> list[tuple[float, str]]:
        """Pixels and texts of round values."""
        ends = self.low * self.factor, self.high * self.factor
        if self.is_log and self.high >= 4 * self.low:
            subs = (1.0,) if self.high >= 30 * self.low else (1.0, 2.0, 5.0)
            values = LogLocator(subs=subs, numticks=6).tick_values(*ends)
        else:
            values = MaxNLocator(nbins=4, steps=STEPS).tick_values(*ends)
        places = [
            (self.at(value / self.factor), f"{value:.6g}")
            for value in values
            if value or not self.is_log
        ]
        low, high = sorted((self.start, self.end))
        return [(place, text) for place, text in places if low <= place <= high]


def interval_axis(values: Sequence[float]) -> Axis:
    """Return the axis that the intervals of all rows share, of fractions in percent."""
    return Axis.around(values or [0.0, 1.0], start=EDGE, end=INTERVAL[0] - EDGE, factor=100.0)


def draw_grid(name: str, axis: Axis, lines: Mapping[str, float]) -> Markup:
    """Return what the drawings of an axis share, as symbols: its ticks with lines, and its numbers.

    `lines` are values by a name that is their class in the page's style.
    """
    width, height = INTERVAL
    marks = [_vertical("tick", place, 0, height) for place, _ in axis.ticks]
    marks += [_vertical(kind, axis.at(value), 0, height) for kind, value in lines.items()]
    numbers = [_text(place, 12, text) for place, text in axis.ticks]
    symbol = Markup('<symbol id="{}-{}" viewBox="0 0 {} {}">{}</symbol>')
    return symbol.format("grid", name, width, height, Markup("").join(marks)) + symbol.format(
        "scale", name, width, SCALE, Markup("").join(numbers)
    )


def draw_scale(name: str) -> Markup:
    """Draw the numbers of an axis, to stand above or below its intervals."""
    return Markup(
        '<svg class="scale" viewBox="0 0 {} {}" aria-hidden="true"><use href="#scale-{}"/></svg>'
    ).format(INTERVAL[0], SCALE, name)


def draw_interval(
    name: str, axis: Axis, value: float, ends: Sequence[float | None], is_filled: bool, title: str
) -> Markup:
    """Draw a value and its interval on the axis of all rows; the value alone where it has none.

    `name` is that of the axis in `draw_grid`, `title` what is read out.
    """
    width, height = INTERVAL
    middle = height / 2
    parts = [Markup('<use href="#grid-{}"/>').format(name)]
    low, high = ends
    if low is not None and high is not None:
        first, last = axis.at(low), axis.at(high)
        parts.append(
            Markup('<path class="reach" d="M{0} {1}H{2}M{0} {3}v10M{2} {3}v10"/>').format(
                first, middle, last, middle - 5
            )
        )

    kind = "value filled" if is_filled else "value"
    parts.append(
        Markup('<circle class="{}" cx="{}" cy="{}" r="4.5"/>').format(kind, axis.at(value), middle)
    )
    return Markup(
        '<svg class="interval" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>'
    ).format(width, height, title, Markup("").join(parts))


@dataclass(frozen=True)
class Dot:
    """A trial in a plot: what it was given, what it reached, and how.

    Attributes:
        text: the value of the parameter.
        value: the mean over its folds; None where it has failed.
        ends: least and greatest fold.
        title: what is said of it.
    """

    text: str
    value: float | None
    ends: tuple[float, float]
    is_chosen: bool
    title: str


def draw_trials(name: str, dots: Sequence[Dot], is_log: bool) -> Markup:
    """Draw what the trials of a row reached over one parameter; failed ones stand at the foot."""
    width, height = PLOT
    values = [end for dot in dots if dot.value is not None for end in dot.ends]
    upright = Axis.around(values or [0.0, 1.0], start=height - BOTTOM, end=TOP, factor=100.0)
    places, ticks = _places([dot.text for dot in dots], is_log)
    parts = [
        Markup('<path class="tick" d="M{} {}H{}"/>').format(LEFT, place, width - RIGHT)
        + _text(LEFT - 5, place + 4, text, "end")
        for place, text in upright.ticks
    ]
    foot = height - BOTTOM
    parts.append(Markup('<path class="frame" d="M{} {}H{}"/>').format(LEFT, foot, width - RIGHT))
    for place, text in ticks:
        parts += [_vertical("frame", place, foot, foot + 4), _text(place, foot + 16, text)]
    parts.append(_text((LEFT + width - RIGHT) / 2, height - 5, name, kind="name"))

    for dot, place in sorted(zip(dots, places, strict=True), key=lambda pair: pair[0].is_chosen):
        parts.append(_draw_dot(dot, place, upright, foot))
    return Markup(
        '<svg class="plot" viewBox="0 0 {} {}" role="img" aria-label="MAP@R over {}">{}</svg>'
    ).format(width, height, name, Markup("").join(parts))


def _places(texts: Sequence[str], is_log: bool) -> tuple[list[float], list[tuple[float, str]]]:
    """Return the pixels of the values of a parameter, and its ticks: of texts, one each."""
    ends = {"start": LEFT, "end": PLOT[0] - RIGHT}
    try:
        numbers = [float(text) for text in texts]
    except ValueError:
        names = sorted(set(texts))
        axis = Axis.around([0, max(1, len(names) - 1)], **ends)
        shown = names if len(names) <= MOST_CHOICES else []
        short = [n if len(n) <= LONGEST_CHOICE else n[: LONGEST_CHOICE - 1] + "…" for n in shown]
        ticks = [(axis.at(number), text) for number, text in enumerate(short)]
        return [axis.at(names.index(text)) for text in texts], ticks
    axis = Axis.around(numbers, **ends, is_log=is_log and min(numbers) > 0)
    return [axis.at(number) for number in numbers], axis.ticks


def _draw_dot(dot: Dot, place: float, upright: Axis, foot: float) -> Markup:
    if dot.value is None:
        drawn = Markup('<path class="failed" d="M{} {}l8 8m0 -8l-8 8"/>').format(
            place - 4, foot - 12
        )
    else:
        kind = "value filled" if dot.is_chosen else "value"
        first, last = (upright.at(end) for end in dot.ends)
        drawn = _vertical("reach", place, first, last)
        height = upright.at(dot.value)
        if dot.is_chosen:
            drawn += Markup('<circle class="ring" cx="{}" cy="{}" r="9"/>').format(place, height)
        drawn += Markup('<circle class="{}" cx="{}" cy="{}" r="4.5"/>').format(kind, place, height)
    return Markup("<g>{}<title>{}</title></g>").format(drawn, dot.title)


def _vertical(kind: str, place: float, top: float, bottom: float) -> Markup:
    return Markup('<path class="{}" d="M{} {}V{}"/>').format(kind, place, top, bottom)


def _text(x: float, y: float, text: str, anchor: str = "middle", kind: str = "number") -> Markup:
    return Markup('<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>').format(
        kind, x, y, anchor, text
    )
