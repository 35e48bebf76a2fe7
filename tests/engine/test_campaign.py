"""A campaign of kills: trainings of every kind end in every way, and go on to the same weights.

CAMPAIGN_KILLS=400 pytest -m slow tests/engine/test_campaign.py
"""

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from processes import children_of
from safetensors.torch import load_file
from test_fit import parts_equal

from metric_learning.engine.run.checkpoints import load_checkpoint

NUM_KILLS = int(os.environ.get("CAMPAIGN_KILLS", "40"))
STEPS = 12
COMMON = ["--model=test_resnet", "--train_batch_size=8", f"--total_iter_num={STEPS}"]
COMMON += ["--test_iter_step=4", "--save_iter_step=3", "--keep=2", "--display_iter_step=1"]
COMMON += ["--test_batch_size=4", "--checkpoint=auto"]
STAGE_1 = ("train_elem", "--loss_name=arcmargin", "--lr=0.01")
STAGE_2 = ("train_pair", "--loss_name=contrastive", "--lr=0.001")
KINDS = {
    "stage 1": STAGE_1,
    "stage 2": ("train_pair", "--loss_name=eml", "--lr=0.0001"),
    "cache": (*STAGE_1, "--cache={folder}/cache"),
    "memory and class layer": (*STAGE_2, "--xbm_size=12", "--alpha=0.1"),
    "average and adamw": (*STAGE_1, "--ema_decay=0.9", "--optimizer=adamw"),
    "chunks": (*STAGE_2, "--chunk_size=3"),
    "accumulation": (*STAGE_1, "--accumulation_steps=2"),
    "epochs": (*STAGE_1, "--log_epochs=True"),
}
SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "hangup": signal.SIGHUP}
ENDS = [*SIGNALS, "worker", "descriptors", "disk"]
STATE = ("model", "live_model", "criterion", "optimizer", "step", "best", "tested", "epoch")


@pytest.fixture
def disk(tmp_path):
    """A folder on a small disk of its own, or one that cannot be filled, where none can be had."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    is_own = subprocess.run(mount, capture_output=True).returncode == 0
    yield folder, is_own
    if is_own:
        # A worker that is about to end may still have a file of it open.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder):
    """Write a file until there is no room; return it."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 16, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    return filler


def end(run, kind, folder, rng):
    """Let a run end in a way, from outside; return what is to be deleted before it goes on."""
    if kind in SIGNALS:
        run.signal(SIGNALS[kind])
    elif kind == "worker":
        for worker in children_of(run.pid)[:1]:
            os.kill(worker, signal.SIGKILL)
    elif kind == "descriptors":
        limit = len(os.listdir(f"/proc/{run.pid}/fd")) + int(rng.integers(4))
        resource.prlimit(run.pid, resource.RLIMIT_NOFILE, (limit, limit))
    else:
        return fill(folder)
    return None


def strike(start, flags, script, folder, kind, rng):
    """Start a run, end it at a random moment, and let it go on to its end; return how it ended."""
    run = start(*flags, script=script)
    step = int(rng.integers(STEPS))
    run.wait_for(f"] trainbatch {step}," if step else "] train: ")
    time.sleep(rng.uniform(0, 0.1))
    filler = None
    if run.is_alive():
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):  # it has just ended
            filler = end(run, kind, folder, rng)
    status = run.wait()
    if filler:
        filler.unlink()
    assert status in ({-9, 0} if kind == "kill" else {0, 2}), f"{kind}: {run.output}"
    # A reading process whose parent is killed may print one.
    assert kind == "kill" or "Traceback" not in run.output, f"{kind}: {run.output}"

    again = start(*flags, script=script)
    assert again.wait() == 0, f"{kind}: {again.output}"
    return f"{kind} after step {step}, status {status}:\n{run.output}\n{again.output}"


def assert_same_end(folder, whole, story):
    ours, theirs = load_checkpoint(folder / "last.pt"), load_checkpoint(whole / "last.pt")
    for part in STATE:
        assert parts_equal(ours.get(part), theirs.get(part)), f"{part} differs; {story}"
    for name in ("last", "best"):
        files = [path / f"{name}.safetensors" for path in (folder, whole)]
        assert parts_equal(*map(load_file, files)), f"{name} differs; {story}"
    assert not list(folder.glob(".*")), story


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(KINDS)), ids=[*KINDS])
def test_kills_change_nothing(start, toy_flags, tmp_path, disk, number):
    folder, is_own = disk
    script, *own = [*KINDS.values()][number]
    flags = [flag for flag in toy_flags if not flag.startswith(("--model=", "--num_workers"))]
    flags += [*COMMON, "--num_workers=1", f"--model_save_dir={folder}"]
    flags += [flag.format(folder=folder) for flag in own]
    whole = start(*flags, "--run_name=whole", script=script)
    assert whole.wait() == 0, whole.output

    rng = np.random.default_rng(number)
    ends = ENDS if is_own else ENDS[:-1]
    for kill in range(number, NUM_KILLS, len(KINDS)):
        kind = ends[(kill // len(KINDS) + number) % len(ends)]
        name = f"run{kill}"
        story = strike(start, [*flags, f"--run_name={name}"], script, folder, kind, rng)
        assert_same_end(Path(folder) / name, Path(folder) / "whole", story)
        shutil.rmtree(folder / name)
