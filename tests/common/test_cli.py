"""How errors are printed under torchrun."""

import time

import pytest

from metric_learning.common.cli import OTHER_RANKS_WAIT, user_errors


@pytest.mark.parametrize(
    ("rank", "waits", "line"),
    [(None, [], "no"), ("0", [], "no"), ("1", [OTHER_RANKS_WAIT], "rank 1: no")],
)
def test_other_ranks_wait_for_the_first_to_end_them(monkeypatch, capsys, rank, waits, line):
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    with pytest.raises(SystemExit) as stop, user_errors():
        raise ValueError("no")
    assert stop.value.code == 2 and slept == waits
    assert capsys.readouterr().err == f"error: {line}\n"
