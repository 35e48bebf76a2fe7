"""Boards that are killed, stopped, shared and starved: they end as if nothing had been."""

import copy
import json
import multiprocessing as mp
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from processes import ROOT, children_of, wait_until

from metric_learning.engine.leaderboard.boards.board import Changes, read_board
from metric_learning.engine.leaderboard.launch import Machines, run_board
from metric_learning.engine.leaderboard.tables.results import OF_THE_MACHINE

NUM_KILLS = 10
BOARD = """
title: small
data: {{dataset: demo, data_dir: {data}}}
flags:
  {{model: test_resnet, image_shape: "3,32,32", num_workers: 0, use_gpu: false,
    train_batch_size: 20, min_crop_area: 0.3}}
protocol: {{folds: 2, trials: 4, reserve: 1, seeds: 2, baseline: untrained}}
search: {{lr: [log, 0.001, 0.1]}}
rows:
  untrained: {{frozen: true}}
  softmax: {{flags: {{loss_name: softmax, total_iter_num: {steps}}}}}
  softmax, eml:
    start: softmax
    flags: {{loss_name: eml, samples_each_class: 2, normalize_embeddings: true, total_iter_num: 8}}
  diverges: {{flags: {{loss_name: softmax, total_iter_num: 8}}, search: {{lr: [log, 1e20, 1e30]}}}}
"""


@pytest.fixture
def board(data, tmp_path):
    """Write a board of trainings of so many steps in the first stage, and return its file."""

    def write(steps=12):
        file = tmp_path / "small.yaml"
        file.write_text(BOARD.format(data=data, steps=steps))
        return file

    return write


@pytest.fixture
def launch():
    """Start a board in a group of processes of its own, none of which outlives the test."""
    started = []

    def start(file, output, *flags):
        words = [f"--board={file}", f"--output_dir={output}", *flags]
        process = subprocess.Popen(
            [sys.executable, "leaderboard.py", *words],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        kill_group(process)


def kill_group(process):
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        process.communicate()


def end_of(process, status=0):
    """Wait until a board has ended as it should, and return what it said and its errors."""
    said, errors = process.communicate(timeout=600)
    assert process.returncode == status, errors
    return said, errors


def group_of(process):
    """Return the living processes of a group."""
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]
    alive = []
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == process.pid and fields[0] not in "ZX":
            alive.append(pid)
    return alive


def results_in(output):
    return [path.parent for path in output.rglob("result.json")]


def checkpoints_in(output):
    return [path for path in output.rglob("last.pt")]


def table_of(output):
    """Return a board's table as its file has it, but for what is of the machine."""
    found = copy.deepcopy(json.loads((output / "board.json").read_text()))
    for row in found["rows"]:
        for name in OF_THE_MACHINE:
            del row[name]
    return json.dumps(found)


@pytest.mark.slow
def test_ten_kills_leave_the_same_table(board, launch, tmp_path):
    file = board()
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    end_of(launch(file, whole, "--jobs=1"))
    number = len(results_in(whole))
    rng = np.random.default_rng()

    for kill in range(NUM_KILLS):
        process = launch(file, killed, "--jobs=2")
        before = len(results_in(killed))
        wanted = min(before + 1 + int(rng.integers(number // NUM_KILLS)), number - NUM_KILLS + kill)
        wait_until(
            lambda wanted=wanted, process=process: (
                len(results_in(killed)) >= wanted or process.poll() is not None
            )
        )
        time.sleep(rng.uniform(0, 0.5))
        assert process.poll() is None
        kill_group(process)
        wait_until(lambda process=process: not group_of(process))
    end_of(launch(file, killed, "--jobs=2"))
    assert table_of(killed) == table_of(whole)
    assert len(results_in(killed)) == number


@pytest.mark.slow
def test_two_launches_in_one_folder_divide_the_work(board, launch, tmp_path):
    file = board()
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    end_of(launch(file, whole, "--jobs=1"))
    both = [launch(file, shared, "--jobs=1") for _ in range(2)]
    for process in both:
        end_of(process)
    assert table_of(shared) == table_of(whole)
    assert len(results_in(shared)) == len(results_in(whole))

    times = {path: path.stat().st_mtime_ns for path in whole.rglob("*.pt")}
    said, _ = end_of(launch(file, whole, "--jobs=1"))
    assert "| softmax |" in said and table_of(whole) == table_of(shared)
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*.pt")} == times
    [diverges] = [r for r in json.loads(table_of(whole))["rows"] if r["name"] == "diverges"]
    assert diverges["failure"] and "figures" not in diverges


@pytest.mark.slow
def test_a_board_stops_at_its_time_and_goes_on(board, tmp_path, capsys):
    asked = read_board(str(board(steps=100000)), Changes(rows=["untrained", "softmax"]))
    output, machines = tmp_path / "out", Machines(1, (), "processes", {})
    output.mkdir()
    rows = {row["name"]: row for row in run_board(asked, output, machines, 15)["rows"]}
    assert "figures" in rows["untrained"] and "figures" not in rows["softmax"]
    assert "the time is over" in capsys.readouterr().out
    assert checkpoints_in(output) and not mp.active_children()

    few = read_board(str(board(steps=12)), Changes(rows=["untrained"]))
    assert run_board(few, output, machines, 100)["is_finished"]
    assert "the time is over" not in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_parent_saves_the_trainings(board, launch, tmp_path, number):
    file, output = board(steps=100000), tmp_path / "out"
    process = launch(file, output, "--jobs=1", "--rows=softmax")
    wait_until(lambda: any("trainbatch" in p.read_text() for p in output.rglob("log.txt")))
    process.send_signal(number)
    _, errors = end_of(process, 130)
    assert errors == "interrupted\n"
    wait_until(lambda: not group_of(process))
    assert checkpoints_in(output) and not results_in(output)


@pytest.mark.slow
def test_ctrl_c_twice_ends_at_once(board, launch, tmp_path):
    file, output = board(steps=100000), tmp_path / "out"
    process = launch(file, output, "--jobs=2", "--rows=softmax")
    wait_until(lambda: any("trainbatch" in p.read_text() for p in output.rglob("log.txt")))
    for _ in range(2):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.1)
    _, errors = end_of(process, 130)
    assert "interrupted\n" in errors
    wait_until(lambda: not group_of(process))


@pytest.mark.slow
def test_workers_end_with_their_parent_and_save(board, launch, tmp_path):
    file, output = board(steps=100000), tmp_path / "out"
    process = launch(file, output, "--jobs=2", "--rows=softmax")
    wait_until(lambda: sum("trainbatch" in p.read_text() for p in output.rglob("log.txt")) == 2)
    assert len(group_of(process)) >= 3
    process.kill()
    wait_until(lambda: not group_of(process))
    assert len(checkpoints_in(output)) == 2 and not results_in(output)


@pytest.mark.slow
def test_others_do_the_work_of_a_killed_process(board, launch, tmp_path):
    file, output = board(), tmp_path / "out"
    process = launch(file, output, "--jobs=2", "--rows=softmax")
    wait_until(lambda: results_in(output))
    workers = [pid for pid in children_of(process.pid) if b"spawn_main" in command_of(pid)]
    os.kill(workers[0], signal.SIGKILL)
    end_of(process)
    assert json.loads((output / "board.json").read_text())["is_finished"]


@pytest.mark.slow
def test_the_end_of_all_processes_is_said(board, launch, tmp_path):
    file, output = board(steps=100000), tmp_path / "out"
    process = launch(file, output, "--jobs=1", "--rows=softmax")
    wait_until(lambda: checkpoint_or_log(output))
    [worker] = [pid for pid in children_of(process.pid) if b"spawn_main" in command_of(pid)]
    os.kill(worker, signal.SIGKILL)
    _, errors = end_of(process, 2)
    assert errors.startswith("error: a process was ended by SIGKILL")
    assert errors.count("error: ") == 1 and "Traceback" not in errors


def checkpoint_or_log(output):
    return any("trainbatch" in path.read_text() for path in output.rglob("log.txt"))


def command_of(pid):
    return Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.mark.slow
def test_a_full_disk_stops_the_board_which_goes_on_later(board, launch, tmp_path):
    file, disk = board(), tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs to mount a small disk")
    try:
        output = disk / "out"
        process = launch(file, output, "--jobs=1", "--rows=softmax")
        _, errors = end_of(process, 2)
        assert "No space left on device" in errors and errors.count("\n") == 1, errors
        failures = [p for p in results_in(output) if "failure" in (p / "result.json").read_text()]
        assert not failures
        subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
        end_of(launch(file, output, "--jobs=1", "--rows=softmax"))
        assert json.loads((output / "board.json").read_text())["is_finished"]
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
