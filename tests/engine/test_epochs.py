"""--log_epochs: a line, a test and a checkpoint per epoch."""

import json
import re

import numpy as np
import pytest

import eval as eval_script
import train_elem
import train_pair
from metric_learning.engine.run.checkpoints import load_checkpoint

SHORT = ["--test_iter_step=0", "--save_iter_step=0", "--display_iter_step=1", "--log_epochs=True"]
NUMBER = r"\d+\.\d{1,6} *"


@pytest.fixture(scope="module")
def closed_tree(toy_tree, tmp_path_factory):
    """A tree whose test split holds the 24 training images again."""
    root = tmp_path_factory.mktemp("closed")
    for split in ("train", "test"):
        (root / split).symlink_to(toy_tree / "train")
    return root


@pytest.fixture
def closed_flags(tiny_flags, closed_tree):
    """Flags of a run of a tiny network on it."""
    return [*tiny_flags, *SHORT, f"--data_dir={closed_tree}", "--keep=0"]


def records(folder, kind):
    lines = (folder / "stats.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def test_every_epoch_has_its_line_and_its_checkpoint(closed_flags):
    folder = train_elem.main([*closed_flags, "--train_batch_size=9", "--num_epochs=3"])
    steps = [3, 6, 8]  # of 9 images, after which 24, 48 and 72 images were seen
    log = (folder / "log.txt").read_text()
    for epoch, step in enumerate(steps, start=1):
        form = (
            rf"\] epoch: {epoch:>3}, train acc: {NUMBER}, train loss: {NUMBER}, "
            rf"test acc: {NUMBER}, test loss: {NUMBER}$\n"
            rf".*\] Saved a model checkpoint at {folder}/step_{step}\.pt$"
        )
        line = re.search(form, log, re.M)
        assert line, form
        assert all(len(value) >= 8 for value in re.findall(r": (\d\.\d+ *)[,\n]", line[0]))
        assert load_checkpoint(folder / f"step_{step}.pt")["step"] == step
    trained = records(folder, "train")
    for number, record in enumerate(records(folder, "epoch")):
        own = trained[([0, *steps])[number] : steps[number]]
        for shown, name in (("train_loss", "loss"), ("train_acc", "acc1")):
            mean = np.mean([step[name] for step in own])
            assert record[shown] == pytest.approx(mean, rel=1e-5)
    result = eval_script.main([f"--pretrained_model={folder / 'last.pt'}", "--num_workers=0"])
    last = records(folder, "epoch")[-1]
    assert (last["test_acc"], last["test_loss"]) == pytest.approx((result["acc1"], result["loss"]))
    assert records(folder, "test")[-1]["acc5"] == result["acc5"]


def test_an_epoch_that_is_interrupted_has_the_means_of_all_its_steps(closed_flags):
    whole = train_elem.main([*closed_flags, "--total_iter_num=6", "--run_name=whole"])
    half = train_elem.main([*closed_flags, "--total_iter_num=5", "--run_name=half"])
    train_elem.main([*closed_flags, "--total_iter_num=6", f"--checkpoint={half / 'last.pt'}"])
    assert len(records(whole, "epoch")) == 2
    assert records(half, "epoch") == records(whole, "epoch")


def test_of_unseen_classes_an_epoch_has_the_recall(tiny_flags):
    folder = train_elem.main([*tiny_flags, *SHORT, "--num_epochs=1"])
    form = rf"epoch:   1, train acc: {NUMBER}, train loss: {NUMBER}, test recall: {NUMBER}, "
    form += rf"chance: {NUMBER}$"
    assert re.search(form, (folder / "log.txt").read_text(), re.M)


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (["--alpha=0.5"], ["train_acc", "train_loss", "test_acc", "test_loss"]),
        ([], ["train_recall", "train_loss", "test_recall", "chance"]),
    ],
    ids=["alpha", "plain"],
)
def test_stage_2_has_what_it_knows(closed_flags, flags, names):
    common = [flag for flag in closed_flags if not flag.startswith("--loss_name=")]
    folder = train_pair.main([*common, "--loss_name=eml", "--num_epochs=1", *flags])
    [record] = records(folder, "epoch")
    assert list(record) == ["kind", "step", "epoch", *names]


def test_two_ranks_write_one_line(closed_flags, torchrun, tmp_path):
    torchrun(["train_elem.py", *closed_flags, "--num_epochs=1"])
    [folder] = tmp_path.glob("test_resnet_arcmargin")
    [record] = records(folder, "epoch")
    losses = [step["loss"] for step in records(folder, "train")]
    assert record["train_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    result = eval_script.main([f"--pretrained_model={folder / 'last.pt'}", "--num_workers=0"])
    assert record["test_acc"] == result["acc1"]
