"""The table of means and deviations over seeds."""

import json

import pytest

from benchmarks.quality.seed_table import main


def test_mean_and_deviation_in_percent(tmp_path):
    for name, recall in (("frozen", 0.5), ("eml_0", 0.6), ("eml_1", 0.7), ("eml_2", 0.8)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"recall@1": recall}))
    table = main([str(tmp_path), "frozen", "eml", "--metrics=recall@1"])
    assert table.splitlines()[2:] == ["| frozen | 50.0 | 1 |", "| eml | 70.0 ± 10.0 | 3 |"]
    with pytest.raises(SystemExit):
        main([str(tmp_path), "npairs"])
