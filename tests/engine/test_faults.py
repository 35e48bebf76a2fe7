"""Runs that are killed, stopped and run out of disk or memory, and go on as if nothing happened."""

import json
import signal
import time

import numpy as np
import pytest
from test_fit import parts_equal

from engine.checkpoints import load_checkpoint

STATE = ("model", "criterion", "optimizer", "step", "best", "tested")


def steps_recorded(folder):
    records = map(json.loads, (folder / "stats.jsonl").read_text().splitlines())
    return [(r["kind"], r["step"], r.get("loss"), r.get("recall@1")) for r in records]


def assert_same_run(folder, whole):
    """Assert that two run folders hold the same training, to the bit, and nothing half-written."""
    ours, theirs = load_checkpoint(folder / "last.pt"), load_checkpoint(whole / "last.pt")
    for part in STATE:
        assert parts_equal(ours[part], theirs[part]), part
    assert steps_recorded(folder) == steps_recorded(whole)
    assert {path.name for path in folder.iterdir()} == {path.name for path in whole.iterdir()}
    for name in ("last.safetensors", "best.safetensors"):
        assert_same_tensors(folder / name, whole / name)


def assert_same_tensors(file, other):
    from safetensors.torch import load_file

    assert parts_equal(load_file(file), load_file(other)), file.name


@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, -9), (signal.SIGTERM, 0)])
def test_ten_interruptions_change_nothing(start, tiny_flags, tmp_path, number, status):
    flags = [*tiny_flags, "--total_iter_num=40", "--save_iter_step=1", "--test_iter_step=5"]
    flags += ["--num_workers=1", "--keep=2"]
    whole = start(*flags, "--run_name=whole")
    rng = np.random.default_rng(0)
    for attempt in range(10):
        run = start(*flags, "--run_name=run", "--checkpoint=auto")
        run.wait_for("] train" if attempt % 2 else "] trainbatch")
        time.sleep(rng.uniform(0, 0.2))
        run.signal(number)
        assert run.wait() == status, run.output
        if number == signal.SIGTERM:
            last = run.output.splitlines()[-1]
            step = load_checkpoint(tmp_path / "run" / "last.pt")["step"]
            assert f"stopped by SIGTERM after step {step}: the same command resumes" in last
            assert step == run.output.count("] trainbatch") + resumed_at(run)
    run = start(*flags, "--run_name=run", "--checkpoint=auto")
    assert run.wait() == whole.wait() == 0
    assert resumed_at(run) > 0
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def resumed_at(run):
    """Return the step that a run says it resumed at, 0 where it began."""
    _, found, rest = run.output.partition("] resuming ")
    return int(rest.splitlines()[0].split()[-1]) if found else 0
