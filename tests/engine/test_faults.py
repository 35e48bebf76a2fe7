"""Runs that are killed, stopped and run out of disk or memory, and go on as if nothing happened."""

import json
import os
import signal
import subprocess
import time

import numpy as np
import pytest
from processes import children_of
from safetensors.torch import load_file
from test_fit import parts_equal

from metric_learning.engine.run.checkpoints import load_checkpoint

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
        assert parts_equal(load_file(folder / name), load_file(whole / name)), name


def resumed_at(run):
    """Return the step that a run says it resumed at, 0 where it began."""
    _, found, rest = run.output.partition("] resuming ")
    return int(rest.splitlines()[0].split()[-1]) if found else 0


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


def error_line(run):
    """Return the only line of a failed run that is no log line."""
    lines = [line for line in run.output.splitlines() if not line.startswith("[")]
    assert len(lines) == 1 and lines[0].startswith("error: "), run.output
    return lines[0]


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (1_000_000, ["last.safetensors (File too large): make room", "before are whole"]),
        (2_000_000, ["last.pt (File too large): make room", "before are whole"]),
        (500_000, ["log.txt: File too large"]),
    ],
)
def test_what_cannot_be_written_is_one_line_and_the_old_checkpoint_stays(
    start, tiny_flags, tmp_path, size, words
):
    """A limit on the size of a file acts as a full disk does, for everybody."""
    flags = [*tiny_flags, "--total_iter_num=40", "--save_iter_step=0", "--test_iter_step=0"]
    flags += ["--run_name=run", "--checkpoint=auto"]
    run = start(*flags)
    run.wait_for("] trainbatch 3")
    run.signal(signal.SIGTERM)
    assert run.wait() == 0
    step = load_checkpoint(tmp_path / "run" / "last.pt")["step"]
    names = {path.name for path in (tmp_path / "run").iterdir()}
    if "log.txt" in words[0]:
        with (tmp_path / "run" / "log.txt").open("a") as log:
            log.write("." * (size - log.tell() - 20) + "\n")
    short = start(*flags, f"--total_iter_num={step + 3}", max_file_size=size)
    assert short.wait() == 2
    assert all(word in error_line(short) for word in words)
    assert load_checkpoint(tmp_path / "run" / "last.pt")["step"] == step
    assert {path.name for path in (tmp_path / "run").iterdir()} == names
    assert start(*flags, f"--total_iter_num={step + 3}").wait() == 0
    assert load_checkpoint(tmp_path / "run" / "last.pt")["step"] == step + 3


@pytest.fixture
def small_disk(tmp_path):
    """A folder with 8 MB of room."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(start, tiny_flags, small_disk):
    flags = [*tiny_flags, "--total_iter_num=5", "--save_iter_step=1", "--test_iter_step=0"]
    flags += [f"--model_save_dir={small_disk}", "--keep=2", "--run_name=run", "--checkpoint=auto"]
    run = start(*flags)
    assert run.wait() == 2
    assert "(No space left on device): make room" in error_line(run)
    assert not list((small_disk / "run").glob(".*"))
    last = load_checkpoint(small_disk / "run" / "last.pt")["step"]
    assert 0 < last < 5
    run = start(*flags, "--save_iter_step=0")
    run.wait()
    assert f"] resuming {small_disk}/run/" in run.output


def test_a_killed_image_reader_is_one_line_after_a_last_checkpoint(start, tiny_flags, tmp_path):
    flags = [*tiny_flags, "--total_iter_num=1000", "--save_iter_step=0", "--test_iter_step=0"]
    run = start(*flags, "--num_workers=1", "--run_name=run")
    run.wait_for("] trainbatch 2")
    (worker,) = children_of(run.pid)
    os.kill(worker, signal.SIGKILL)
    assert run.wait() == 2
    step = load_checkpoint(tmp_path / "run" / "last.pt")["step"]
    error = error_line(run)
    assert "a process that reads images was killed" in error and "--num_workers" in error
    log = (tmp_path / "run" / "log.txt").read_text().splitlines()
    assert log[-1].endswith(
        f"stopped after step {step}: --checkpoint={tmp_path}/run/last.pt resumes"
    )
    assert f"] trainbatch {step}, " in log[-2]
