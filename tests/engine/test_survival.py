"""Errors of any kind, wherever they come: the run is saved, and goes on as if nothing was."""

import errno
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import PATIENCE, TrainingProcess, context, wait_until
from test_fit import parts_equal
from test_resume import process_of_rank, read

import train_elem
import train_pair
from metric_learning.engine.embed import embedding
from metric_learning.engine.run.checkpoints import load_checkpoint
from metric_learning.engine.run.run_folder import RunFolder
from metric_learning.engine.train import run as run_module
from metric_learning.engine.train import stages
from metric_learning.engine.train.run import TrainingRun
from metric_learning.reader.batches import workers as workers_module
from metric_learning.reader.batches.loader import eval_loader
from metric_learning.reader.preprocessing import Preprocessing
from metric_learning.reader.sets.plain_images import image_set_of

STEPS = ["--total_iter_num=4", "--test_iter_step=0", "--save_iter_step=0", "--checkpoint=auto"]
# Both losses remember something before the weights change.
ELEM = (train_elem, "ELEM", ["--loss_name=vpl", "--lr=0.01"])
PAIR = (train_pair, "PAIR", ["--loss_name=contrastive", "--xbm_size=12", "--accumulation_steps=2"])
GPU_IS_FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
STATE = ("model", "criterion", "optimizer", "step", "best", "tested")


@pytest.fixture
def flags(tiny_flags):
    """Flags of a run of 4 steps without the loss."""
    return [*(flag for flag in tiny_flags if not flag.startswith(("--loss_name", "--lr"))), *STEPS]


def fail_at(monkeypatch, stage, call, error):
    """Let a stage's loss raise an error at a call, after it has been computed."""
    calls = []
    original = getattr(stages, stage)

    def compute(*batch):
        found = original.loss(*batch)
        if torch.is_grad_enabled():  # not what measures the start
            calls.append(found)
            if len(calls) == call:
                raise error
        return found

    monkeypatch.setattr(stages, stage, original._replace(loss=compute))


def last_of(folder):
    return load_checkpoint(folder / "last.pt")


def assert_equal(folder, whole):
    for part in STATE:
        assert parts_equal(last_of(folder)[part], last_of(whole)[part]), part


@pytest.mark.parametrize(
    ("script", "stage", "own", "call", "error", "status"),
    [
        (*ELEM, 3, GPU_IS_FULL, 2),
        (*ELEM, 3, RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), 2),
        (*PAIR, 6, MemoryError(), 2),
        (*PAIR, 6, KeyError("a fault of ours"), None),
    ],
)
def test_an_error_within_a_step_leaves_no_trace(
    flags, tmp_path, monkeypatch, capsys, script, stage, own, call, error, status
):
    whole = script.main([*flags, *own, "--run_name=whole"])
    with monkeypatch.context() as patch:
        fail_at(patch, stage, call, error)
        with pytest.raises((SystemExit, KeyError)) as stop:
            script.main([*flags, *own, "--run_name=run"])
    folder = tmp_path / "run"
    assert getattr(stop.value, "code", None) == status
    assert last_of(folder)["step"] == 2
    assert "stopped after step 2: the same command resumes" in (folder / "log.txt").read_text()
    assert capsys.readouterr().err.count("\n") == (1 if status else 0)
    assert script.main([*flags, *own, "--run_name=run"]) == folder
    assert_equal(folder, whole)


def test_half_changed_weights_are_not_saved(flags, tmp_path, monkeypatch, capsys):
    """The checkpoint from before stays, and the line says that the run goes on from before."""
    own = [*flags, *ELEM[2], "--run_name=run"]
    train_elem.main([*own, "--total_iter_num=2"])

    def break_off(optimizer, *_):
        optimizer.param_groups[0]["params"][0].data.zero_()
        raise GPU_IS_FULL

    monkeypatch.setattr(torch.optim.SGD, "step", break_off)
    with pytest.raises(SystemExit):
        train_elem.main(own)
    assert last_of(tmp_path / "run")["step"] == 2
    assert "the same command resumes from before it" in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--test_iter_step=2", "--log_epochs=True"])
def test_the_run_is_saved_before_every_test(flags, tmp_path, monkeypatch, flag):
    """So that a process that is killed in the test has lost nothing."""
    saved = []

    def tested(run):
        saved.append((run.step, last_of(run.path)["step"]))
        return original(run)

    original = TrainingRun.test
    monkeypatch.setattr(TrainingRun, "test", tested)
    train_elem.main([*flags, *ELEM[2], flag, "--train_batch_size=12"])
    assert saved == [(2, 2), (4, 4)]


def test_memory_that_runs_out_in_a_test_loses_nothing(flags, tmp_path, monkeypatch, capsys):
    own = [*flags, *ELEM[2], "--test_iter_step=2"]
    whole = train_elem.main([*own, "--run_name=whole"])

    def fill(*_):
        raise GPU_IS_FULL

    with monkeypatch.context() as patch:
        patch.setattr(embedding, "iterate_embeddings", fill)
        with pytest.raises(SystemExit) as stop:
            train_elem.main([*own, "--run_name=run"])
    assert stop.value.code == 2 and last_of(tmp_path / "run")["step"] == 2
    assert "in a test that of the test" in capsys.readouterr().err
    train_elem.main([*own, "--run_name=run"])
    assert_equal(tmp_path / "run", whole)


@pytest.mark.parametrize("name", ["_log_file", "_stats_file"])
def test_a_log_that_cannot_be_written_loses_no_step(flags, tmp_path, monkeypatch, name):
    class Full:
        def write(self, _):
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self):
            pass

    def record(folder, kind, step, **values):
        if step == 3:
            setattr(folder, name, Full())
            folder.log("one more line")
        original(folder, kind, step, **values)

    original = RunFolder.record
    monkeypatch.setattr(RunFolder, "record", record)
    with pytest.raises(SystemExit) as stop:
        train_elem.main([*flags, *ELEM[2], "--run_name=run"])
    assert stop.value.code == 2 and last_of(tmp_path / "run")["step"] == 3


def test_what_cannot_be_saved_is_said_and_the_first_error_stays(
    flags, tmp_path, monkeypatch, capsys
):
    def fail(*_):
        raise OSError(errno.EDQUOT, "Disk quota exceeded", "last.pt")

    fail_at(monkeypatch, "ELEM", 3, MemoryError())
    monkeypatch.setattr(run_module, "save_checkpoint", fail)
    with pytest.raises(SystemExit):
        train_elem.main([*flags, *ELEM[2]])
    out, err = capsys.readouterr()
    assert "step 2 cannot be saved: cannot write last.pt (Disk quota exceeded)" in out
    assert err.startswith("error: this machine has too little memory")


def test_a_full_disk_below_stdout_ends_no_training(tiny_flags, tmp_path):
    flags = [*tiny_flags, "--total_iter_num=2", "--test_iter_step=0", "--run_name=run"]
    run = TrainingProcess("train_elem", flags, Path("/dev/full"))
    assert run.wait() == 0
    lines = (tmp_path / "run" / "log.txt").read_text()
    assert "trainbatch 2, " in lines and "run folder: " in lines


def test_a_terminal_that_goes_away_stops_a_training_with_everything_saved(
    start, tiny_flags, tmp_path
):
    run = start(*tiny_flags, "--total_iter_num=1000", "--test_iter_step=0", "--run_name=run")
    run.wait_for("] trainbatch 2")
    run.signal(signal.SIGHUP)
    assert run.wait() == 0
    assert f"stopped by SIGHUP after step {last_of(tmp_path / 'run')['step']}: " in run.output


IMAGES = image_set_of([np.full((8, 8, 3), value, np.uint8) for value in range(12)])
PLAIN = Preprocessing("standard", 4, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def start_workers(num_workers):
    batches = iter(
        eval_loader(IMAGES, PLAIN, batch_size=2, num_workers=num_workers, pin_memory=False)
    )
    next(batches)
    return batches


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EMFILE, "Too many open files"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("can't start new thread"),
    ],
)
def test_workers_that_cannot_all_be_started_are_ended(monkeypatch, capsys, error):
    """They ignore SIGTERM, and would keep the process from its end for ever."""
    started = []

    def start(process):
        started.append(process)
        if len(started) == 3:
            raise error
        original(process)

    original = multiprocessing.Process.start
    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", start)
    begun = time.monotonic()
    with pytest.raises(OSError, match="cannot be started .*lower --num_workers"):
        start_workers(4)
    assert time.monotonic() - begun < 4
    assert len(started) == 3 and not any(process.is_alive() for process in started[:2])
    assert capsys.readouterr().err == ""


def keep_workers_and_fail():
    """End with a traceback that keeps the workers, as an error of ours does."""
    multiprocessing.set_start_method("fork", force=True)  # as where no server was
    workers_module.kept = start_workers(2)
    sys.exit(1)


def test_no_end_waits_for_workers():
    process = context().Process(target=keep_workers_and_fail)
    process.start()
    process.join(60)
    assert process.exitcode == 1


@pytest.mark.slow
def test_rank_0_saves_alone_what_it_has_where_another_is_killed(
    start_torchrun, tiny_flags, tmp_path
):
    flags = [*tiny_flags, "--total_iter_num=100000", "--test_iter_step=0", "--run_name=run"]
    (agent,) = start_torchrun(["train_elem.py", *flags])
    log = tmp_path / "run" / "log.txt"
    wait_until(lambda: agent.poll() is not None or "trainbatch 3," in read(log))
    os.kill(process_of_rank(1, agent.pid), signal.SIGKILL)
    agent.communicate(timeout=PATIENCE)
    step = last_of(tmp_path / "run")["step"]
    assert agent.returncode != 0 and step >= 3
    assert f"stopped after step {step}: --checkpoint=" in read(log)
