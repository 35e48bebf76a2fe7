"""The benchmark of the split class layer: its table, and a run on few classes."""

import pytest

from benchmarks.speed.shard import Work, main, table


def test_a_run_measures_losses_time_and_memory(capsys):
    flags = ["--class_dim=30", "--embedding_size=4", "--batch_size=4", "--steps=1", "--rounds=1"]
    (found,) = main([*flags, "--loss_name=arcmargin", "--processes=1"])["1"]
    assert len(found["losses"]) == 2 and found["cpu_seconds"] > 0 and len(found["peak_bytes"]) == 1
    assert "### arcmargin, 30 classes x 4 " in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--batch_size=3"])
    assert "multiple of 2 (processes), found 3" in capsys.readouterr().err


def test_the_best_round_is_set_beside_that_of_one_process():
    def measured(cpu_seconds, *peaks):
        shares = [peak * 2**30 for peak in peaks]
        figures = {"wall_seconds": 2.0, "cpu_seconds": cpu_seconds, "peak_bytes": shares}
        return figures | {"losses": [3.0, 1.0]}

    found = {"1": [measured(5.0, 8), measured(4.0, 8)], "2": [measured(6.0, 4, 5)]}
    work = Work("softmax", class_dim=1000, embedding_size=8, batch_size=4, steps=1)
    rows = [line for line in table(work, found).splitlines() if line.startswith("| ")]
    assert rows[1].startswith("| 1 | 4.00 | 1.00 | 2.00 | 8.00 | 3.000000, 1.000000 | 5.00, 4.00")
    assert rows[2].startswith("| 2 | 6.00 | 1.50 | 2.00 | 4.00, 5.00 |")
