"""The benchmark of few large classes: a run, and its ratio."""

import pytest

from benchmarks.speed.few_classes import SMALL, main, table


def test_a_run_measures_large_classes_beside_small_ones(capsys):
    found = main(["--sizes=400", "--dims=4", "--classes=2"])
    assert [list(rounds) for rounds in found] == 2 * [[SMALL, "2 classes"]]
    assert "### random, 400 images, 4 dimensions" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--sizes=400,500", "--dims=4"])
    assert "as many sizes as dims, found 2 and 1" in capsys.readouterr().err


def test_the_ratio_is_that_of_the_best_rounds():
    rounds = {
        SMALL: [{"cpu_seconds": 3.0}, {"cpu_seconds": 2.0}],
        "2 classes": [{"cpu_seconds": 5}],
    }
    assert table(rounds).splitlines()[-1].startswith("| 2 classes | 5.00 | 2.50 |")
