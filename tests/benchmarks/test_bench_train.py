"""The training benchmark on a few small steps: what it measures and how it says so."""

import pytest

from benchmarks.speed.train import main

TINY = ["--model=test_resnet", "--image_size=32", "--batch_size=16", "--num_steps=2"]
TINY += ["--size=40,50", "--rounds=1", "--num_workers=0"]


def test_methods_are_measured_in_turns_beside_the_bare_step(capsys):
    for [found] in main([*TINY, "--methods=bare,chunked"]).values():
        assert found["wall_seconds"] > 0 and found["cpu_seconds"] > 0 and found["peak_bytes"] > 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split("|") for line in lines if line.startswith(("| bare", "| chunked"))]
    assert [row[2].strip() for row in rows] == ["16", "512"]
    assert rows[0][4].strip() == "1.000"


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--size=40", "expected HEIGHT,WIDTH, found '40'"),
        ("--batch_size=12", "expected a multiple of 8 images"),
        ("--methods=bare,none", "expected methods among bare, this"),
    ],
)
def test_wrong_flags_are_one_line(flag, message, capsys):
    with pytest.raises(SystemExit):
        main([*TINY, flag])
    assert message in capsys.readouterr().err
