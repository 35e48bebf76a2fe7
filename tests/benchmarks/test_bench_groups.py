"""The benchmark of groups: a run, and its ratio."""

import pytest

from benchmarks.speed.groups import NONE, main, table


def test_a_run_measures_groups_beside_none(capsys):
    [rounds] = main(["--sizes=400", "--dims=4", "--groups=2,6"])
    assert list(rounds) == [NONE, "2 groups", "6 groups"]
    queries = [found[0]["queries"] for found in rounds.values()]
    assert queries[0] == 400 > queries[2] > queries[1] > 0  # some have no positive left
    out = capsys.readouterr().out
    assert "### 400 images, 4 dimensions" in out and "| no groups | 400 |" in out
    with pytest.raises(SystemExit):
        main(["--sizes=400,500", "--dims=4"])
    assert "as many sizes as dims, found 2 and 1" in capsys.readouterr().err


def test_the_ratio_is_that_of_the_best_rounds():
    found = {"recall@1": 0.5, "queries": 1200}
    rounds = {
        NONE: [{"cpu_seconds": 3.0, **found}, {"cpu_seconds": 2.0, **found}],
        "6 groups": [{"cpu_seconds": 3, **found}],
    }
    assert table(rounds).splitlines()[-1] == "| 6 groups | 1,200 | 3.00 | 1.50 | 50.000 |"
