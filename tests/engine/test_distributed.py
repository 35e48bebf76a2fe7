"""Two processes under torchrun (gloo) against one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import eval as eval_script
from engine.checkpoints import load_checkpoint

ROOT = Path(__file__).resolve().parent.parent.parent


def run(flags, num_processes, folder, script="train_elem.py"):
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_processes}"]
    subprocess.run(
        [sys.executable, *launcher, ROOT / script, *flags, f"--model_save_dir={folder}"],
        check=True,
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    return folder / "ResNet18_arcmargin"


def test_two_processes_train_and_test_as_one(toy_flags, tmp_path):
    """With frozen batch norm the loss of a batch is the mean over its halves."""
    flags = [*toy_flags, "--loss_name=arcmargin", "--train_batch_size=8", "--freeze_bn=True"]
    flags += ["--total_iter_num=3", "--test_iter_step=3", "--display_iter_step=3", "--lr=0.01"]
    folders = []
    for num_processes in (1, 2):
        save_dir = tmp_path / str(num_processes)
        save_dir.mkdir()
        folders.append(run(flags, num_processes, save_dir))
    one, two = (load_checkpoint(folder / "last.pt") for folder in folders)
    for part in ("model", "criterion"):
        for name, value in one[part].items():
            torch.testing.assert_close(two[part][name], value, rtol=1e-4, atol=1e-5)
    records = [
        [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]
        for folder in folders
    ]
    assert [r["step"] for r in records[0]] == [r["step"] for r in records[1]] == [3, 3]
    assert abs(records[0][0]["loss"] - records[1][0]["loss"]) < 1e-3
    assert records[0][1]["queries"] == records[1][1]["queries"] == 16


def test_all_ranks_test_the_network_that_is_saved(toy_flags, tmp_path):
    """Batch-norm statistics differ between ranks until they are shared for a test."""
    flags = [*toy_flags, "--loss_name=eml", "--train_batch_size=8", "--run_name=named"]
    run([*flags, "--total_iter_num=2", "--lr=0.01"], 2, tmp_path, "train_pair.py")
    folder = tmp_path / "named"
    tested = json.loads((folder / "stats.jsonl").read_text().splitlines()[-1])
    result = eval_script.main([f"--pretrained_model={folder / 'last.pt'}", "--num_workers=0"])
    assert tested["map@r"] == pytest.approx(result["map@r"], rel=1e-6)
