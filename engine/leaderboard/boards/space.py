"""Search spaces: which settings the trials of a row try.

The settings of a trial follow from the row's seed and the trial's number alone, whichever trials
have ended before: so a table does not depend on who computed what first. Sobol points fill a space
evenly (Bergstra & Bengio 2012, https://jmlr.org/papers/v13/bergstra12a.html, section 4).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import qmc

from metric_learning.common.optional import import_optional

KINDS = ("log", "linear", "integer", "choice")
DIGITS = 3  # of a number that is tried
REACH = 0.5  # of a range, by which it is widened beyond an edge
LEAST_TRIED = 4  # settings, of which the best lies on an edge for a reason
NEAR = 0.25  # of a range, around the best setting, that the reserve tries again

Point = Mapping[str, str]  # flag -> its text


@dataclass(frozen=True)
class Parameter:
    """What a flag may be: numbers from `low` to `high`, evenly or by their logarithm, or choices.

    Attributes:
        kind: one of KINDS.
        choices: texts, of the kind `choice` alone.
    """

    name: str
    kind: str
    low: float = 0.0
    high: float = 0.0
    choices: tuple[str, ...] = ()

    def at(self, place: float) -> str:
        """Return the value at a place of the range, 0 to 1, or beyond where it was widened."""
        if self.kind == "choice":
            return self.choices[
                min(int(max(place, 0.0) * len(self.choices)), len(self.choices) - 1)
            ]
        if self.kind == "log":
            value = math.exp(math.log(self.low) + place * math.log(self.high / self.low))
        else:
            value = self.low + place * (self.high - self.low)
        if self.low >= 0:  # widened, it stays what it was: above 0, or at least 1 if a whole number
            value = max(value, 1.0 if self.kind == "integer" and self.low >= 1 else 0.0)
        return f"{value:.0f}" if self.kind == "integer" else f"{value:.{DIGITS}g}"

    def place_of(self, text: str) -> float:
        """Return the place of a value, the inverse of `at` but for its rounding."""
        if self.kind == "choice":
            return (self.choices.index(text) + 0.5) / len(self.choices)
        if self.kind == "log":
            return math.log(float(text) / self.low) / math.log(self.high / self.low)
        return (float(text) - self.low) / (self.high - self.low)

    def __str__(self) -> str:
        if self.kind == "choice":
            return f"{self.name}: {', '.join(self.choices)}"
        return f"{self.name}: {self.low:g} to {self.high:g} ({self.kind})"


def parse_parameter(name: str, texts: Sequence[str]) -> Parameter:
    """Read `[log, 0.001, 0.1]`, `[linear, 0, 0.5]`, `[integer, 1, 8]` or `[choice, a, b]`.

    Raises ValueError for anything else.
    """
    expected = (
        f"{name}: expected a kind and its range, such as [log, 0.001, 0.1], [linear, 0, 0.5], "
        f"[integer, 1, 8] or [choice, a, b], found [{', '.join(texts)}]"
    )
    kind, values = texts[0] if texts else "", list(texts[1:])
    if kind not in KINDS:
        raise ValueError(expected)
    if kind == "choice":
        if len(values) < 2 or len(set(values)) < len(values):
            raise ValueError(f"{name}: expected at least two choices, each once")
        return Parameter(name, kind, choices=tuple(values))

    try:
        low, high = map(float, values)
    except ValueError:
        raise ValueError(expected) from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"{name}: expected a range from a smaller to a larger number")
    if kind == "log" and low <= 0:
        raise ValueError(f"{name}: expected a range above 0, which has a logarithm")
    return Parameter(name, kind, low, high)


def first_points(
    space: Sequence[Parameter], number: int, seed: int, search: str = "sobol"
) -> list[Point]:
    """Return the settings of the first trials of a row; one trial where nothing is searched.

    `search` is "sobol", a scrambled sequence, or "grid", the corners and what lies between them.
    """
    if not space:
        return [{}]
    places = _grid(space, number, seed) if search == "grid" else _sobol(len(space), number, seed)
    return [_point(space, row) for row in places]


def _sobol(dim: int, number: int, seed: int) -> np.ndarray:
    """Return places (number, dim) of a scrambled Sobol sequence, of which a power of 2 is drawn."""
    drawn = qmc.Sobol(dim, scramble=True, seed=seed).random_base2(max(0, (number - 1).bit_length()))
    return np.asarray(drawn[:number])


def _grid(space: Sequence[Parameter], number: int, seed: int) -> np.ndarray:
    """Return places (number, dim) of a grid, in a random order, that is cut to the number."""
    levels = math.ceil(number ** (1 / len(space)))
    axes = [
        (np.arange(size) + 0.5) / size if p.kind == "choice" else np.linspace(0, 1, max(2, size))
        for p, size in ((p, len(p.choices) or levels) for p in space)
    ]
    places = np.array(list(itertools.product(*axes)))
    return np.random.default_rng(seed).permutation(places)[:number]


def reserve_points(
    space: Sequence[Parameter], best: Point, tried: Sequence[Point], number: int, seed: int
) -> tuple[list[Point], list[str]]:
    """Return the settings of a row's reserve of trials: beyond the edge on which its best lies.

    The best lies on the edge of a parameter where no trial tried a more extreme value. What has no
    edge, or its best within, is searched again around the best.

    Returns:
        The settings, and a text for each parameter that is widened.
    """
    if not space:
        return [], []
    widened = [edge_of(parameter, best, tried) for parameter in space]
    shares = _sobol(len(space), number, seed + 1)
    lows, highs = np.empty(len(space)), np.empty(len(space))
    for i, (parameter, edge) in enumerate(zip(space, widened, strict=True)):
        place = parameter.place_of(best[parameter.name])
        lows[i], highs[i] = max(0.0, place - NEAR), min(1.0, place + NEAR)
        if parameter.kind == "choice":
            lows[i], highs[i] = 0.0, 1.0
        elif edge < 0:
            lows[i], highs[i] = -REACH, place
        elif edge > 0:
            lows[i], highs[i] = place, 1.0 + REACH

    points = [_point(space, lows + share * (highs - lows)) for share in shares]
    texts = [
        f"{p.name} {'below' if edge < 0 else 'above'} {p.low if edge < 0 else p.high:g}"
        for p, edge in zip(space, widened, strict=True)
        if edge
    ]
    return points, texts


def edge_of(parameter: Parameter, best: Point, tried: Sequence[Point]) -> int:
    """Return -1 or 1 where the best value is the least or greatest that was tried, else 0.

    It is 0 too for choices, of few settings, and where a range begins at 0: there it ends as well.
    """
    if parameter.kind == "choice" or len(tried) < LEAST_TRIED:
        return 0
    values = [float(point[parameter.name]) for point in tried]
    value = float(best[parameter.name])
    if min(values) == max(values):
        return 0
    if value == min(values):
        return 0 if parameter.low == 0 else -1
    return 1 if value == max(values) else 0


def _point(space: Sequence[Parameter], places: np.ndarray) -> Point:
    return {p.name: p.at(float(place)) for p, place in zip(space, places, strict=True)}


def suggest(
    space: Sequence[Parameter], finished: Sequence[tuple[Point, float]], seed: int
) -> Point:
    """Suggest the settings of a trial by TPE, from those of others and what these reached.

    Algorithms for Hyper-Parameter Optimization (Bergstra et al. 2011), as Optuna has it; its own
    first suggestions, of few trials, are random. Raises ValueError where Optuna is not installed.
    """
    optuna = import_optional("optuna", "--search=tpe")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    unit = optuna.distributions.FloatDistribution(0.0, 1.0)
    distributions = {parameter.name: unit for parameter in space}
    sampler = optuna.samplers.TPESampler(seed=seed + len(finished))
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for point, value in finished:
        places = {p.name: min(max(p.place_of(point[p.name]), 0.0), 1.0) for p in space}
        study.add_trial(
            optuna.trial.create_trial(params=places, distributions=distributions, value=value)
        )
    asked = study.ask(distributions).params
    return _point(space, np.array([asked[parameter.name] for parameter in space]))
