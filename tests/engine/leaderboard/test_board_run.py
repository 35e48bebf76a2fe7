"""One small board from its command to its table, and what it refuses before it starts."""

import json
import os
import re
import shutil
import signal
import sys
from datetime import datetime, timedelta

import pytest
import torch

import leaderboard
from metric_learning.engine.leaderboard import launch
from metric_learning.engine.leaderboard.boards.board import read_board
from metric_learning.engine.leaderboard.launch import check_devices, reason_of
from metric_learning.engine.leaderboard.trainings.plan import Plan
from metric_learning.engine.leaderboard.trainings.work import (
    Interrupted,
    Place,
    check_words,
    run_task,
    work,
)
from metric_learning.engine.train import stages
from metric_learning.models import build_model

BOARD = """
data: {{dataset: demo, data_dir: {data}}}
images: {{train: 80, test: 80}}
flags: {{model: test_resnet, image_shape: "3,32,32", num_workers: 0, use_gpu: false,
  train_batch_size: 16, {weights}}}
protocol: {{folds: 2, trials: 1, reserve: 1, seeds: 2, baseline: untrained}}
search: {{}}
rows:
  untrained: {{frozen: true}}
  softmax: {{flags: {{loss_name: softmax, total_iter_num: 2}}, search: {{lr: [log, 0.01, 0.1]}}}}
  softmax, eml:
    start: softmax
    flags: {{loss_name: eml, samples_each_class: 2, normalize_embeddings: true, total_iter_num: 2}}
  fails:
    flags: {{loss_name: eml, samples_each_class: 8, total_iter_num: 2, train_batch_size: 400}}
"""


@pytest.fixture
def board(data, tmp_path):
    """Write a board on some data, and return its file."""

    def write(data=data, weights="weight_decay: 0.0005"):
        file = tmp_path / "small.yaml"
        file.write_text(BOARD.format(data=data, weights=weights))
        return file

    return write


@pytest.fixture
def compare(board, tmp_path, monkeypatch):
    """Compare in this process, which spares to start others; returns the table."""

    def run_here(board, output, places, seconds):
        work(Plan(board, output), places[0])

    def compare_here(*flags, output="out", **parts):
        file = board(**parts)
        words = [f"--board={file}", f"--output_dir={tmp_path / output}", "--jobs=1", *flags]
        return leaderboard.main(words)

    monkeypatch.setattr(launch, "run_processes", run_here)
    return compare_here


def test_a_board_is_done_once_and_its_commands_repeat_it(compare, tmp_path, capsys):
    found = compare()
    output = tmp_path / "out"
    rows = {row["name"]: row for row in found["rows"]}
    assert found["is_finished"] and len(rows) == 5
    for name in ("untrained", "softmax", "softmax, eml", "softmax, for 4 steps"):
        assert 0 < rows[name]["figures"]["recall@1"]["mean"] < 1, name
    assert rows["softmax"]["images"] == 32 and rows["softmax, eml"]["images"] == 32
    assert rows["softmax, for 4 steps"]["images"] == 64 and rows["untrained"]["images"] == 0
    assert rows["softmax"]["memory_mib"] > 0 and rows["softmax"]["minutes"] > 0
    assert "400" in rows["fails"]["failure"] and "figures" not in rows["fails"]
    table = capsys.readouterr().out
    assert "| softmax, eml |" in table and f"| fails | {rows['fails']['failure']} |" in table
    assert not list(output.rglob("best.*")) and list(output.rglob("last.pt"))

    # The same command once more does nothing.
    results = {path: path.stat().st_mtime_ns for path in output.rglob("result.json")}
    again = compare()
    assert again["rows"] == json.loads((output / "board.json").read_text())["rows"] == found["rows"]
    assert {path: path.stat().st_mtime_ns for path in output.rglob("result.json")} == results

    # A command of the table, in another folder, comes to the same figures.
    plan = Plan(read_board(str(tmp_path / "small.yaml")), output)
    task = plan.finals(plan.board.row("softmax"))[1]
    run_task(task, tmp_path / "elsewhere", Place())
    repeated = Plan(plan.board, tmp_path / "elsewhere").outcome(task)
    assert repeated.metrics == plan.outcome(task).metrics


def test_what_has_changed_below_the_results_is_said(compare, data, tmp_path, error_of):
    copy, weights = tmp_path / "demo", tmp_path / "weights.pt"
    shutil.copytree(data, copy)
    torch.save(build_model("test_resnet").backbone.state_dict(), weights)
    parts = {"data": copy, "weights": f"pretrained_model: {weights}"}
    compare("--rows=untrained", **parts)

    def refusal():
        return error_of(lambda flags: compare(*flags, **parts), ["--rows=untrained"])

    torch.save(build_model("test_resnet").backbone.state_dict(), weights)
    assert f"began with other weights {weights}: choose another --output_dir" in refusal()
    for name in ("origin.json",):
        (tmp_path / "out" / name).write_text("{}")
        assert name in refusal()
    (tmp_path / "out" / "origin.json").write_text('{"weights": {}}')
    compare("--rows=untrained", **parts)

    image = next(copy.glob("*/000030_0.JPG"))
    image.write_bytes(next(copy.glob("*/000030_1.JPG")).read_bytes())
    assert "holds results of other test images" in refusal()


def test_a_folder_that_was_just_begun_is_the_boards_own(compare, tmp_path, monkeypatch):
    """A kill between the first two files leaves one by which the folder is told."""

    def fail(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("metric_learning.common.fingerprint.Snapshot.save", fail)
        with pytest.raises(SystemExit):
            compare("--rows=untrained")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["origin.json"]
    assert compare("--rows=untrained")["is_finished"]


def test_a_closed_set_is_told_from_an_open_one(compare, error_of, monkeypatch, board):
    file = board()
    text = file.read_text().replace("baseline: untrained", "closed: true")
    monkeypatch.setattr("test_board_run.BOARD", text.replace("{", "{{").replace("}", "}}"))
    error = error_of(lambda flags: compare(*flags), [])
    assert "the test classes are not those of training: set `closed: False`" in error


def test_a_dry_run_needs_no_data_and_writes_nothing(compare, tmp_path, capsys):
    foreseen = compare("--dry_run", data=tmp_path / "nowhere")
    lines = capsys.readouterr().out.splitlines()
    commands = [line for line in lines if line.startswith("python train_")]
    assert foreseen["trainings"] == len(commands) == 1 + (2 * 2 + 2) * 2 + 2 + 2
    assert foreseen["seconds"] > 0 and foreseen["gpu_seconds"] > 0
    assert all("# about" in line and "GiB" in line for line in commands)
    assert f"\n{len(commands)} trainings take about" in "\n".join(lines)
    assert not (tmp_path / "out").exists()
    assert sum("--val_fold=1/2" in line for line in commands) == 4
    assert sum("--lr=CHOSEN" in line for line in commands) == 4
    assert sum("--lr=NEAR_BEST" in line for line in commands) == 4


def test_the_commands_of_a_dry_run_are_those_of_the_trainings(compare, tmp_path, capsys):
    compare("--dry_run")
    said = capsys.readouterr().out
    plan = Plan(read_board(str(tmp_path / "small.yaml")), tmp_path / "out")
    for task in plan.open_tasks():
        assert " ".join(["python", task.script, *task.words(plan.output)]) in said
        assert check_words(task, task.words(plan.output)).run_name is not None


def test_a_smoke_run_is_of_two_steps_each(compare, capsys):
    compare("--dry_run", "--budget=smoke")
    commands = [line for line in capsys.readouterr().out.splitlines() if "python train_" in line]
    lengths = {re.search(r"--total_iter_num=(\d+) ", line)[1] for line in commands}
    assert lengths == {"0", "2", "4"}  # 4 beside two stages


def one_task(board, output):
    return Plan(read_board(str(board())), output).open_tasks()[1]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "this machine has too little memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), "the GPU has too little memory"),
        (ValueError("the loss is not finite"), "the loss is not finite"),
        (KeyError("a fault\nof ours"), "KeyError: "),
    ],
)
def test_what_a_training_fails_of_is_a_line(board, tmp_path, monkeypatch, error, words):
    def fail(*_):
        raise error

    task = one_task(board, tmp_path)
    monkeypatch.setattr(stages, "ELEM", stages.ELEM._replace(loss=fail))
    run_task(task, tmp_path, Place())
    outcome = Plan(read_board(str(board())), tmp_path).outcome(task)
    assert words in outcome.failure and "\n" not in outcome.failure and not outcome.metrics
    has_traceback = (tmp_path / task.folder / "traceback.txt").exists()
    assert has_traceback == isinstance(error, KeyError)


@pytest.mark.parametrize("is_told", [False, True])
def test_a_full_disk_is_no_failure_of_a_training(board, tmp_path, monkeypatch, is_told):
    def fail(*_):
        full = OSError(28, "No space left on device", "last.pt")
        raise (ValueError("cannot write last.pt (No space left)") if is_told else full) from full

    task = one_task(board, tmp_path)
    monkeypatch.setattr(stages, "ELEM", stages.ELEM._replace(loss=fail))
    with pytest.raises((OSError, ValueError), match="No space left"):
        run_task(task, tmp_path, Place())
    assert not (tmp_path / task.folder / "result.json").exists()


def test_a_diverging_training_is_a_failed_one_and_the_board_goes_on(board, tmp_path):
    plan = Plan(read_board(str(board())), tmp_path)
    task = plan.open_tasks()[1]
    task.flags["lr"] = "1e30"
    run_task(task, tmp_path, Place())
    outcome = plan.outcome(task)
    assert outcome.failure is not None or outcome.is_dead
    assert plan.search(plan.board.row("softmax")).trials


def test_a_training_that_a_signal_stops_has_no_outcome_and_goes_on(board, tmp_path, monkeypatch):
    def interrupt(*batch):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*batch)

    plan = Plan(read_board(str(board())), tmp_path)
    task, original = plan.open_tasks()[1], stages.ELEM.loss
    with monkeypatch.context() as patch:
        patch.setattr(stages, "ELEM", stages.ELEM._replace(loss=interrupt))
        with pytest.raises(Interrupted):
            run_task(task, tmp_path, Place())
    folder = tmp_path / task.folder
    assert plan.outcome(task) is None and (folder / "last.pt").exists()

    described = json.loads((folder / "args.json").read_text())
    began = datetime.fromisoformat(described["started"]) - timedelta(hours=1)
    described["started"] = began.isoformat(" ")
    (folder / "args.json").write_text(json.dumps(described))
    run_task(task, tmp_path, Place())
    assert plan.outcome(task).failure is None and plan.outcome(task).minutes >= 60  # of both starts


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("cuda:99", "there are"),
        ("gpu zero", "expected numbers of GPUs"),
        ("cuda:x", "expected num"),
    ],
)
def test_devices_that_are_not_there(name, reason):
    with pytest.raises(ValueError, match=f"^--devices={name}: {reason}"):
        check_devices([name])


def test_a_device_that_is_not_there_fails_no_training(compare, tmp_path, error_of):
    error = error_of(lambda flags: compare(*flags), ["--devices=99"])
    assert error.startswith("error: --devices=cuda:99: there are ")
    assert not list(tmp_path.rglob("result.json"))


def test_ends_of_processes_in_words():
    assert reason_of(-9).startswith("a process was ended by SIGKILL")
    assert "traceback is above" in reason_of(1)


@pytest.mark.parametrize("launcher", ["slurm", "local"])
def test_a_launcher_that_is_not_installed_is_named(compare, error_of, monkeypatch, launcher):
    monkeypatch.setitem(sys.modules, "submitit", None)
    error = error_of(lambda flags: compare(*flags), [f"--launcher={launcher}"])
    assert f"--launcher={launcher}" in error and "submitit" in error
