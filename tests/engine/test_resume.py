"""Where a run goes on: --checkpoint=auto, damaged checkpoints, other workers and ranks."""

import copy
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from processes import PATIENCE, ROOT, children_of, wait_until
from test_fit import parts_equal

import train_elem
from metric_learning.common.flags import last_of_each
from metric_learning.engine.run.checkpoints import load_checkpoint

STEPS = ["--test_iter_step=0", "--save_iter_step=1"]


@pytest.fixture
def flags(tiny_flags):
    """Flags of a run in the folder `run` that goes on there by itself."""
    return [*tiny_flags, *STEPS, "--run_name=run", "--checkpoint=auto"]


@pytest.fixture
def train(flags):
    """Train a tiny network in the folder `run` with --checkpoint=auto."""
    return lambda *more: train_elem.main([*flags, *more])


@pytest.fixture
def fails(train, capsys):
    """Train what must fail with one line and status 2, and return the line."""

    def run(*flags):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            train(*flags)
        error = capsys.readouterr().err
        assert stop.value.code == 2 and error.count("\n") == 1, error
        return error

    return run


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1000])


def step_of(folder, name="last.pt"):
    return load_checkpoint(folder / name)["step"]


def test_auto_begins_goes_on_and_ends(train, tmp_path, capsys):
    """One command does for ever: the first start, a resume and a run that is done."""
    (tmp_path / "run").mkdir()
    folder = train("--total_iter_num=2")
    assert folder == tmp_path / "run" and "resuming" not in capsys.readouterr().out
    train("--total_iter_num=3")
    assert f"resuming {folder / 'last.pt'} after step 2" in capsys.readouterr().out
    files = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert train("--total_iter_num=3") == folder
    out = capsys.readouterr().out
    assert out.endswith(f"{folder} has finished its 3 steps: nothing to do\n")
    assert files == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_auto_goes_on_in_the_folder_of_a_run_without_checkpoints(tiny_flags, tmp_path):
    flags = [*tiny_flags, *STEPS, "--checkpoint=auto", "--total_iter_num=1"]
    folder = train_elem.main(flags)
    assert folder == tmp_path / "test_resnet_arcmargin"
    for path in folder.glob("*.pt"):
        path.unlink()
    assert train_elem.main(flags) == folder and step_of(folder) == 1
    records = (folder / "stats.jsonl").read_text().splitlines()
    assert [json.loads(record)["step"] for record in records] == [1]


def test_a_damaged_newest_checkpoint_is_passed_over(train, fails, tmp_path, capsys):
    whole = train("--total_iter_num=4", "--run_name=whole")
    folder = train("--total_iter_num=3")
    truncate(folder / "last.pt")
    truncate(folder / "step_3.pt")
    error = fails(f"--checkpoint={folder / 'last.pt'}", "--total_iter_num=4")
    assert "last.pt is damaged" in error
    assert f"the newest good one is --checkpoint={folder / 'step_2.pt'}" in error
    train("--total_iter_num=4")
    log = (folder / "log.txt").read_text()
    for name in ("last.pt", "step_3.pt"):
        assert f"passed over {name}: checkpoint {folder / name} is damaged" in log
    assert f"resuming {folder / 'step_2.pt'} after step 2" in log
    for part in ("model", "criterion", "optimizer", "step"):
        ours, theirs = (load_checkpoint(path / "last.pt")[part] for path in (folder, whole))
        assert parts_equal(ours, theirs), part
    steps = [json.loads(line)["step"] for line in (folder / "stats.jsonl").open()]
    assert steps == [1, 2, 3, 4]


def test_damaged_checkpoints_are_never_replaced_by_a_new_run(train, fails):
    folder = train("--total_iter_num=1")
    for path in folder.glob("*.pt"):
        truncate(path)
    error = fails("--total_iter_num=1")
    assert f"no checkpoint in {folder} is good" in error and "Delete them" in error
    assert "last.pt is damaged" in error and "step_1.pt is damaged" in error


def test_a_damaged_best_is_written_anew(train, tmp_path, capsys):
    flags = ["--test_iter_step=1", "--save_iter_step=0"]
    folder = train(*flags, "--total_iter_num=1")
    truncate(folder / "best.pt")
    train(*flags, "--total_iter_num=2")
    assert "the next test writes it anew" in (folder / "log.txt").read_text()
    assert load_checkpoint(folder / "best.pt")["best"]["step"] == 2


def test_going_back_leaves_the_later_steps_behind(train, tmp_path):
    folder = train("--total_iter_num=5", "--keep=0")
    train(f"--checkpoint={folder / 'step_2.pt'}", "--total_iter_num=3", "--keep=0")
    assert {path.name for path in folder.glob("*.pt")} == {
        *("last.pt", "step_1.pt", "step_2.pt", "step_3.pt")
    }
    assert step_of(folder) == 3
    steps = [json.loads(line)["step"] for line in (folder / "stats.jsonl").open()]
    assert steps == [1, 2, 3]


def test_a_checkpoint_of_an_earlier_version_resumes(train, tmp_path):
    folder = train("--total_iter_num=1")
    checkpoint = load_checkpoint(folder / "last.pt")
    del checkpoint["tested"]
    former = checkpoint | {"random_state": {"cpu": torch.get_rng_state()}}
    torch.save(former, tmp_path / "former.pt")  # not over the file that its tensors lie in
    (tmp_path / "former.pt").replace(folder / "last.pt")
    (folder / "step_1.pt").unlink()
    train("--total_iter_num=2", "--test_iter_step=1")
    assert step_of(folder) == 2
    kinds = [json.loads(line)["kind"] for line in (folder / "stats.jsonl").open()]
    assert kinds == ["train", "train", "test"]  # the test of step 1 is taken to be done


def test_the_folder_of_another_run_is_not_begun_anew(train, fails, tmp_path, tiny_flags):
    folder = train("--total_iter_num=1")
    error = fails("--loss_name=softmax")
    assert f"{folder}/last.pt was made with --loss_name=arcmargin" in error
    (folder / "args.json").unlink()  # the checkpoints are still those of a run
    with pytest.raises(SystemExit):
        train_elem.main([*tiny_flags, *STEPS, "--run_name=run"])


def test_args_json_that_is_missing_or_damaged(train, fails):
    folder = train("--total_iter_num=1")
    (folder / "args.json").unlink()
    train("--total_iter_num=2")
    assert "args.json was missing" in (folder / "log.txt").read_text()
    for content in ("{", "[]"):
        (folder / "args.json").write_text(content)
        assert f"{folder}/args.json is damaged" in fails("--total_iter_num=3")


def test_two_ranks_stop_together_and_one_goes_on(train, flags, tmp_path):
    """Samples and rates are equal; sums of floats are nearly, with frozen batch norm."""
    flags = [*flags, "--freeze_bn=True", "--lr=0.001", "--lr_steps=3,5", "--save_iter_step=0"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    with (tmp_path / "output.txt").open("w+") as output:
        agent = subprocess.Popen(
            [*launcher, *last_of_each([ROOT / "train_elem.py", *flags, "--total_iter_num=100000"])],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=output,
            stderr=output,
        )
        log = tmp_path / "run" / "log.txt"
        wait_until(lambda: agent.poll() is not None or "trainbatch 2," in read(log))
        os.kill(process_of_rank(1, agent.pid), signal.SIGTERM)
        assert agent.wait(PATIENCE) == 0, read(tmp_path / "output.txt")
    stopped = step_of(tmp_path / "run")
    assert f"stopped by SIGTERM after step {stopped}: the same command" in read(log)
    assert read(tmp_path / "output.txt").count("stopped by") == 1
    folder, whole = (
        train(*flags, f"--total_iter_num={stopped + 3}", f"--run_name={name}")
        for name in ("run", "whole")
    )
    assert f"resuming {folder / 'last.pt'} after step {stopped}" in read(log)
    for part in ("model", "criterion"):
        ours, theirs = (load_checkpoint(path / "last.pt")[part] for path in (folder, whole))
        for name, value in ours.items():
            torch.testing.assert_close(value, theirs[name], rtol=1e-3, atol=1e-5)
    ours, theirs = (
        [json.loads(line) for line in (path / "stats.jsonl").open()] for path in (folder, whole)
    )
    assert [r["step"] for r in ours] == [r["step"] for r in theirs] == list(range(1, stopped + 4))
    assert [r["lr"] for r in ours] == [r["lr"] for r in theirs]
    assert [r["loss"] for r in ours] == pytest.approx([r["loss"] for r in theirs], rel=1e-3)


def read(file):
    return file.read_text() if file.exists() else ""


def process_of_rank(rank, agent):
    """Return the process of a rank among the children of torchrun."""
    (process,) = (
        child
        for child in children_of(agent)
        if f"\0RANK={rank}\0" in Path(f"/proc/{child}/environ").read_text()
    )
    return process


def test_the_number_of_workers_may_change(train):
    folders = []
    for name, workers in (("run", (0, 2)), ("whole", (1, 1))):
        for steps, num_workers in zip((2, 4), workers, strict=True):
            run = [f"--run_name={name}", f"--num_workers={num_workers}"]
            folders.append(train(*run, f"--total_iter_num={steps}"))
    ours, theirs = (load_checkpoint(folder / "last.pt") for folder in folders[1::2])
    assert all(parts_equal(ours[part], theirs[part]) for part in ("model", "optimizer", "step"))


def test_a_state_that_was_made_up_is_one_line(train, fails, tmp_path):
    """Weights that are no tensors, an optimizer without groups, momenta of other shapes."""
    whole = load_checkpoint(train("--total_iter_num=1") / "last.pt")
    momenta = copy.deepcopy(whole["optimizer"])
    next(iter(momenta["state"].values()))["momentum_buffer"] = torch.zeros(3)
    for name, changed in (
        ("criterion", {"criterion": dict.fromkeys(whole["criterion"], "x")}),
        ("model", {"model": dict.fromkeys(whole["model"], 1)}),
        ("optimizer", {"optimizer": {}}),
        ("momenta", {"optimizer": momenta}),
        ("epoch", {"epoch": {"num_steps": "x"}}),
        ("start", {"start": {"scores": {"recall@1": [1]}}}),
    ):
        file = tmp_path / f"{name}.pt"
        torch.save(whole | changed, file)
        error = fails(f"--checkpoint={file}", "--total_iter_num=2", f"--run_name={name}")
        assert "is damaged" in error or "the optimizer of the checkpoint is of another" in error
