"""Whole runs of several processes under torchrun (gloo) against one process; lost processes."""

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

import eval as eval_script
import train_elem
import train_pair
from metric_learning.engine.parallel.world import World
from metric_learning.engine.run.checkpoints import load_checkpoint
from metric_learning.engine.train.start import check_batch_norm, synchronise_batch_norm
from metric_learning.models import build_model

SCRIPTS = {script: Path(script.__file__) for script in (train_elem, train_pair)}


@pytest.fixture
def flags(toy_flags, tmp_path):
    """Flags under which the mean over the halves of a batch is that of the batch."""
    return [
        *toy_flags,
        *("--train_batch_size=8", "--freeze_bn=True", "--display_iter_step=1"),
        *("--test_iter_step=0", "--save_iter_step=0", f"--model_save_dir={tmp_path}"),
    ]


def records(folder, kind):
    """Records of a kind, train or test, in the order of the steps."""
    lines = (folder / "stats.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def assert_same_run(ours, theirs):
    """The folders hold the same losses and figures, weights and state of the optimizer."""
    for name in ("loss", "recall", "acc1", "acc5"):
        values = [[step.get(name, 0.0) for step in records(run, "train")] for run in (ours, theirs)]
        assert values[0] == pytest.approx(values[1], abs=1e-3), name
    ours, theirs = (load_checkpoint(folder / "last.pt") for folder in (ours, theirs))
    for part in ("model", "criterion"):
        torch.testing.assert_close(dict(ours[part]), dict(theirs[part]), rtol=1e-4, atol=1e-5)
    states = ours["optimizer"]["state"], theirs["optimizer"]["state"]
    torch.testing.assert_close(*states, rtol=1e-3, atol=1e-4)


def test_all_ranks_test_the_network_that_is_saved(toy_flags, torchrun, tmp_path):
    """Batch-norm statistics differ between ranks until they are shared for a test."""
    flags = [*toy_flags, "--loss_name=eml", "--train_batch_size=8", "--run_name=named"]
    flags += ["--total_iter_num=2", "--lr=0.01", f"--model_save_dir={tmp_path}"]
    torchrun([SCRIPTS[train_pair], *flags])
    folder = tmp_path / "named"
    tested = records(folder, "test")[-1]
    result = eval_script.main([f"--pretrained_model={folder / 'last.pt'}", "--num_workers=0"])
    assert tested["map@r"] == pytest.approx(result["map@r"], rel=1e-6)


def test_two_nodes_that_gather_train_and_test_as_one_process(flags, torchrun, tmp_path):
    """Loss and recall are those of the whole batch, though each node has half of it, in chunks."""
    flags += ["--loss_name=eml", "--total_iter_num=5", "--test_iter_step=5", "--lr=0.001"]
    flags += ["--gather=True"]
    chunked = ["--run_name=two", "--chunk_size=2"]
    torchrun([SCRIPTS[train_pair], *flags, *chunked], num_processes=1, num_nodes=2)
    one, two = train_pair.main([*flags, "--run_name=one"]), tmp_path / "two"
    assert_same_run(two, one)
    assert [records(folder, "test")[-1]["queries"] for folder in (one, two)] == [16, 16]


def test_a_run_goes_on_sharded_and_then_whole_again(flags, torchrun, tmp_path):
    """Steps 1, 2 and 3 in parts and chunks, and 4, against a run that is never sharded."""
    flags += ["--loss_name=arcmargin", "--lr=0.01", "--test_iter_step=3"]
    flags += ["--pooling=gem", "--last_stride=1", "--feature_norm=layernorm", "--embedding_size=8"]
    whole = train_elem.main([*flags, "--total_iter_num=4", "--run_name=whole"])
    folder = train_elem.main([*flags, "--total_iter_num=1", "--run_name=parts"])
    resume = ["--loss_name=arcmargin", f"--checkpoint={folder / 'last.pt'}"]
    sharded = ["--shard_head=True", "--accumulation_steps=2", "--chunk_size=1"]
    torchrun([SCRIPTS[train_elem], *resume, "--total_iter_num=3", *sharded])
    evaluated = eval_script.main([f"--pretrained_model={folder / 'last.pt'}", "--num_workers=0"])
    train_elem.main([*resume, "--total_iter_num=4"])  # --shard_head of one process
    assert_same_run(folder, whole)
    tested = next(test for test in records(folder, "test") if test["step"] == 3)
    assert tested["map@r"] == pytest.approx(evaluated["map@r"], rel=1e-6)


def worker_of(agent):
    """Process id of the last worker of a torchrun."""
    return int(Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()[-1])


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds workers through /proc")
def test_a_killed_process_ends_the_run_on_all_nodes(flags, start_torchrun, tmp_path):
    flags += ["--loss_name=arcmargin", "--total_iter_num=100000", "--run_name=killed"]
    agents = start_torchrun([SCRIPTS[train_elem], *flags], num_processes=2, num_nodes=2)
    stats = tmp_path / "killed" / "stats.jsonl"
    deadline = time.monotonic() + 120
    while not (stats.exists() and stats.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert records(stats.parent, "train")
    os.kill(worker_of(agents[1]), signal.SIGKILL)
    errors = [agent.communicate(timeout=120)[1] for agent in agents]
    assert all(agent.returncode > 0 for agent in agents)
    assert re.search(r"exitcode *: -9", errors[1])  # torchrun's own words
    assert "error: another process of this run ended or cannot be reached" in errors[0]


@pytest.mark.parametrize(
    ("loss_name", "flag", "message"),
    [
        ("eml", "--shard_head=True", "unknown flag --shard_head"),
        ("arcmargin", "--gather=True", "unknown flag --gather"),
        ("eml", "--sync_bn=True", "--sync_bn=True is not used with --freeze_bn=True"),
    ],
)
def test_flags_that_are_not_used_are_refused(flags, capsys, loss_name, flag, message):
    script = train_pair if loss_name == "eml" else train_elem
    with pytest.raises(SystemExit):
        script.main([*flags, f"--loss_name={loss_name}", flag])
    assert message in capsys.readouterr().err


def test_batch_norm_is_synchronised_on_several_gpus_only():
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    model = build_model("mobilenetv2_100").eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    names, embeddings = list(model.state_dict()), model(images)
    for world, device in ((World(0, 2), cpu), (World(), gpu)):
        with pytest.raises(ValueError, match="needs several processes with a GPU each"):
            synchronise_batch_norm(model, world, device)
    synchronise_batch_norm(model, World(0, 2), gpu)
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    assert norms and all(isinstance(module, torch.nn.SyncBatchNorm) for module in norms)
    assert list(model.state_dict()) == names and torch.equal(model(images), embeddings)
    with pytest.raises(ValueError, match="--sync_bn is not used: test_vit has no batch norm"):
        check_batch_norm(build_model("test_vit"), freeze_bn=False, sync_bn=True)
    with pytest.raises(ValueError, match="--freeze_bn is not used"):
        vit = build_model("test_vit", feature_norm="bnneck")
        check_batch_norm(vit, freeze_bn=True, sync_bn=False)


LEAVE_AT_ONCE = f"""
import sys

sys.path.insert(0, {str(SCRIPTS[train_pair].parent)!r})
sys.setswitchinterval(10)  # seconds for which no other thread gets the interpreter's lock unasked

import torch

from metric_learning.engine.parallel.collectives import gather_batch, wrap
from metric_learning.engine.parallel.world import join_world, leave_world

world = join_world()
module = wrap(torch.nn.Linear(1, 1), world)
for _ in range(20):
    gather_batch(torch.ones(1, 30_000), torch.ones(1), world)
leave_world(world)
"""


def test_ranks_may_end_right_after_their_last_collective(torchrun, tmp_path):
    """Threads of gloo are done with the interpreter before it ends."""
    script = tmp_path / "leave_at_once.py"
    script.write_text(LEAVE_AT_ONCE)
    torchrun([script])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_with_synchronised_batch_norm_train_as_one(flags, torchrun, tmp_path):
    flags += ["--loss_name=eml", "--total_iter_num=5", "--lr=0.001", "--gather=True"]
    flags += ["--freeze_bn=False", "--use_gpu=True", "--amp=off"]
    torchrun([SCRIPTS[train_pair], *flags, "--sync_bn=True", "--run_name=two"])
    assert_same_run(tmp_path / "two", train_pair.main([*flags, "--run_name=one"]))


def test_a_process_may_join_again(torchrun, tmp_path):
    """As a program does that calls one script after the other: nobody calls who has left."""
    script = tmp_path / "join_again.py"
    again = "world = join_world()\nassert world.size == 2\nleave_world(world)\n"
    head = LEAVE_AT_ONCE[: LEAVE_AT_ONCE.index("world = ")].replace(
        "switchinterval(10)", "switchinterval(1)"
    )
    script.write_text(head + again * 5)
    torchrun([script])
