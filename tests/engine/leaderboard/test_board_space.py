"""Search spaces: what the trials of a row try."""

import numpy as np
import pytest

from metric_learning.engine.leaderboard.boards.space import (
    NEAR,
    REACH,
    edge_of,
    first_points,
    parse_parameter,
    reserve_points,
)

LOG = parse_parameter("lr", ["log", "0.001", "0.1"])
LINEAR = parse_parameter("margin", ["linear", "0", "0.5"])
FAR = parse_parameter("margin", ["linear", "0.1", "0.5"])
INTEGER = parse_parameter("samples", ["integer", "1", "8"])
CHOICE = parse_parameter("mining", ["choice", "all", "semihard", "distance"])
SPACE = (LOG, LINEAR, INTEGER, CHOICE)


@pytest.mark.parametrize(
    ("parameter", "low", "middle", "high"),
    [
        (LOG, "0.001", "0.01", "0.1"),
        (LINEAR, "0", "0.25", "0.5"),
        (INTEGER, "1", "4", "8"),
        (CHOICE, "all", "semihard", "distance"),
    ],
)
def test_values_at_places(parameter, low, middle, high):
    assert [parameter.at(place) for place in (0.0, 0.5, 1.0)] == [low, middle, high]


@pytest.mark.parametrize("parameter", SPACE, ids=lambda parameter: parameter.kind)
def test_a_place_is_found_again(parameter):
    for place in np.linspace(0, 1, 9):
        text = parameter.at(place)
        assert parameter.at(parameter.place_of(text)) == text


def test_what_is_widened_stays_sensible():
    assert LOG.at(-REACH) == "0.0001" and LOG.at(1 + REACH) == "1"
    assert LINEAR.at(-REACH) == "0" and LINEAR.at(1 + REACH) == "0.75"
    assert INTEGER.at(-REACH) == "1" and INTEGER.at(1 + REACH) == "12"
    assert parse_parameter("shift", ["linear", "-1", "1"]).at(-REACH) == "-2"
    assert CHOICE.at(-1.0) == "all" and CHOICE.at(2.0) == "distance"


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        ([], "expected a kind and its range"),
        (["logarithm", "1", "2"], "expected a kind and its range"),
        (["log", "1"], "expected a kind and its range"),
        (["log", "1", "2", "3"], "expected a kind and its range"),
        (["linear", "a", "2"], "expected a kind and its range"),
        (["linear", "2", "2"], "from a smaller to a larger"),
        (["linear", "2", "1"], "from a smaller to a larger"),
        (["linear", "nan", "1"], "from a smaller to a larger"),
        (["linear", "0", "inf"], "from a smaller to a larger"),
        (["log", "0", "1"], "above 0, which has a logarithm"),
        (["choice", "a"], "at least two choices"),
        (["choice", "a", "a"], "at least two choices"),
    ],
)
def test_bad_ranges_are_named(texts, reason):
    with pytest.raises(ValueError, match=f"^lr: .*{reason}"):
        parse_parameter("lr", texts)


@pytest.mark.parametrize("search", ["sobol", "grid"])
def test_settings_follow_from_the_seed_alone(search):
    found = first_points(SPACE, 8, 3, search)
    assert found == first_points(SPACE, 8, 3, search) != first_points(SPACE, 8, 4, search)
    assert len(found) == 8 and all([*point] == [p.name for p in SPACE] for point in found)
    for point in found:
        for parameter in SPACE:
            assert 0 <= parameter.place_of(point[parameter.name]) <= 1


def test_more_trials_keep_the_first_ones():
    assert first_points(SPACE, 16, 0)[:5] == first_points(SPACE, 5, 0)


def test_sobol_points_fill_a_range_evenly():
    for seed in range(5):
        places = [LOG.place_of(point["lr"]) for point in first_points([LOG], 8, seed)]
        assert sorted(min(int(place * 8 + 1e-2), 7) for place in places) == [*range(8)]


def test_a_grid_has_its_corners_and_every_choice():
    found = first_points([LOG, CHOICE], 9, 0, "grid")
    assert {(p["lr"], p["mining"]) for p in found} == {
        (rate, mining) for rate in ("0.001", "0.01", "0.1") for mining in CHOICE.choices
    }
    assert len(first_points([CHOICE], 8, 0, "grid")) == 3


def test_nothing_to_search_is_one_trial():
    assert first_points([], 8, 0) == [{}]
    assert reserve_points([], {}, [{}], 4, 0) == ([], [])


@pytest.mark.parametrize(
    ("parameter", "values", "best", "edge"),
    [
        (LOG, "0.001 0.01 0.02 0.05", "0.001", -1),
        (LOG, "0.001 0.01 0.02 0.05", "0.05", 1),
        (LOG, "0.001 0.01 0.02 0.05", "0.02", 0),
        (LOG, "0.01 0.01 0.01 0.01", "0.01", 0),
        (LOG, "0.001 0.01 0.1", "0.1", 0),  # of so few, one is the best for no reason
        (LINEAR, "0 0.1 0.2 0.3", "0", 0),  # there is nothing below
        (LINEAR, "0.05 0.1 0.2 0.3", "0.05", 0),  # the range ends at 0, which is searched
        (FAR, "0.15 0.2 0.3 0.4", "0.15", -1),
        (CHOICE, "all all semihard distance", "distance", 0),
    ],
)
def test_the_best_lies_on_an_edge(parameter, values, best, edge):
    tried = [{parameter.name: value} for value in values.split()]
    assert edge_of(parameter, {parameter.name: best}, tried) == edge


def test_the_reserve_goes_beyond_the_edge_of_the_best():
    tried = first_points(SPACE, 8, 0)
    best = max(tried, key=lambda point: float(point["lr"]))
    points, widened = reserve_points(SPACE, best, tried, 16, 0)
    place = LOG.place_of(best["lr"])
    assert len(points) == 16 and "lr above 0.1" in widened
    places = [LOG.place_of(point["lr"]) for point in points]
    assert min(places) >= place - 1e-2 and 1 < max(places) <= 1 + REACH + 1e-2
    assert points == reserve_points(SPACE, best, tried, 16, 0)[0]
    assert reserve_points(SPACE, best, tried, 0, 0)[0] == []


def test_the_reserve_stays_around_a_best_within():
    tried = [{"lr": text} for text in ("0.001", "0.005", "0.01", "0.05", "0.1")]
    points, widened = reserve_points([LOG], {"lr": "0.01"}, tried, 16, 0)
    places = [LOG.place_of(point["lr"]) for point in points]
    assert not widened
    assert 0.5 - NEAR - 1e-2 <= min(places) < 0.5 < max(places) <= 0.5 + NEAR + 1e-2
