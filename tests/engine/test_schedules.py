"""Learning rates by step."""

import pytest

from metric_learning.engine.options.parts import ScheduleOptions
from metric_learning.engine.train.train import rate_at


def schedule(**values):
    defaults = {
        "lr": 0.1,
        "lr_strategy": "piecewise_decay",
        "lr_steps": (2, 4),
        "warmup_iter_num": 0,
        "total_iter_num": 10,
        "epoch_size": 100,
    }
    return ScheduleOptions(**defaults | values)


def rates_of(steps, **values):
    return [rate_at(schedule(**values), step) for step in steps]


def test_piecewise_decay_divides_by_ten_at_each_step():
    assert rates_of(range(6)) == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_piecewise_decay_may_have_another_factor():
    rates = rates_of(range(5), lr_steps=(1, 3), lr_gamma=0.3)
    assert rates == pytest.approx([0.1, 0.03, 0.03, 0.009, 0.009])


def test_cosine_decay_goes_from_the_rate_to_zero():
    assert rates_of((0, 5, 10), lr_strategy="cosine_decay") == pytest.approx([0.1, 0.05, 0.0])


def test_constant_rate():
    assert rates_of([7], lr_strategy="constant") == [0.1]


def test_warm_up_rises_linearly_to_the_schedule():
    constant = rates_of(range(5), lr_strategy="constant", warmup_iter_num=4)
    assert constant == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1])
    assert rates_of(range(4), warmup_iter_num=3) == pytest.approx([0.025, 0.05, 0.0075, 0.01])


def test_a_cosine_begins_after_the_warm_up():
    rates = rates_of((0, 1, 2, 6, 10), lr_strategy="cosine_decay", warmup_iter_num=2)
    assert rates == pytest.approx([0.1 / 3, 0.2 / 3, 0.1, 0.05, 0.0])
