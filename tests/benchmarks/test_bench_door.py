"""The benchmark of the command line: its commands end as expected, and its arithmetic."""

import pytest

from benchmarks.speed import door


def test_commands_are_measured_and_their_ends_checked(monkeypatch):
    found = door.measure("eval.py, a mistyped flag")
    assert found["cpu_seconds"] > 0 and found["wall_seconds"] > 0
    monkeypatch.setitem(door.COMMANDS, "eval.py, --help", (["eval.py", "--help"], 2))
    with pytest.raises(ValueError, match="eval.py, --help: expected exit status 2, found 0"):
        door.measure("eval.py, --help")


def test_medians_stand_beside_the_baseline(monkeypatch, capsys):
    seconds = {name: [9.0, 2.0, 3.0, 1.0] for name in door.COMMANDS}  # the first one warms up
    seconds["infer.py, --help"] = [9.0, 8.0, 6.0, 5.0]
    monkeypatch.setattr(
        door,
        "measure",
        lambda name: {"cpu_seconds": seconds[name].pop(0), "wall_seconds": 0.5},
    )
    ratios = door.main(["--rounds=3"])
    assert ratios["import torch"] == 1 and ratios["infer.py, --help"] == 3
    printed = capsys.readouterr().out
    assert "| infer.py, --help | 6.000 | 3.00 | 0.500 | 8.000, 6.000, 5.000 |" in printed
    assert "Above the limit of 1.3 times `import torch`: infer.py, --help." in printed
