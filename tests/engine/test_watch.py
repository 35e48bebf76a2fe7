"""Stage 2 measures its start, says when it ruins it, and compares the end with it."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import eval as eval_script
import train_elem
import train_pair
from metric_learning.engine.options.parts import BatchOptions
from metric_learning.engine.parallel.world import World
from metric_learning.engine.run.checkpoints import load_checkpoint
from metric_learning.engine.train import watch
from metric_learning.engine.train.stages import pair_loss
from metric_learning.engine.train.watch import CollapseError, Watch
from metric_learning.losses import PAIR_LOSSES, build_loss, reads_raw
from metric_learning.losses.scaledloss import ScaledLoss

START = {"loss": 8.2, "collapsed_loss": 1.0, "recall": 0.5, "norm": 16.0}
START |= {"d2_pos": 343.0, "d2_neg": 277.0}
EML = ["--train_batch_size=8", "--lr=0.001", "--display_iter_step=1", "--save_iter_step=0"]


def step_of(criterion):
    """As much of a step as measuring given embeddings takes."""
    batches = BatchOptions(8, 2, "blocks", 1, 0, False)
    return SimpleNamespace(
        learner=SimpleNamespace(criterion=criterion),
        machine=SimpleNamespace(world=World(), device=torch.device("cpu")),
        batches=batches,
        stage_loss=pair_loss,
    )


def clusters(norm, spread=0.8, num_classes=40, dim=64):
    """Embeddings of pairs around random directions, of about this norm."""
    rng = torch.Generator().manual_seed(0)
    centres = torch.randn(num_classes, dim, generator=rng).repeat_interleave(2, 0)
    rows = centres + spread * torch.randn(2 * num_classes, dim, generator=rng)
    return norm * torch.nn.functional.normalize(rows), torch.arange(num_classes).repeat_interleave(
        2
    )


def test_eml_of_large_embeddings_starts_above_its_collapsed_value():
    figures = watch.figures_of(step_of(build_loss("eml")), [clusters(16.7, spread=1.3)])
    assert figures["collapsed_loss"] == pytest.approx(1.0, abs=1e-3)
    assert figures["loss"] > 1.2 and figures["norm"] == pytest.approx(16.7)
    lines = Watch(True, False, False, start=figures).describe_start()
    assert len(lines) == 2 and "warning: the loss starts above" in lines[1]
    assert len(Watch(True, False, False, start=START | {"loss": 0.8}).describe_start()) == 1


@pytest.mark.parametrize("name", ["eml", "npairs"])
def test_auto_takes_the_scale_that_starts_lowest(name):
    parts = [clusters(16.7), clusters(3.0, spread=1.2)]
    criterion = ScaledLoss(build_loss(name))
    watch.choose_scale(step_of(criterion), parts)
    chosen = float(criterion.scale)

    def gain(scale):
        losses = [ScaledLoss(build_loss(name), scale)(*part) for part in parts]
        means = [(rows.mean(0, keepdim=True).expand_as(rows), labels) for rows, labels in parts]
        return sum(ScaledLoss(build_loss(name), scale)(*part) for part in means) - sum(losses)

    assert gain(chosen) > 0 and 1 < chosen < 100
    assert all(gain(chosen) >= gain(scale) - 0.02 for scale in np.geomspace(0.3, 100, 40))


def test_every_raw_loss_and_no_other_depends_on_the_norm():
    rows, labels = clusters(1.0, num_classes=6)
    for name in PAIR_LOSSES:
        if getattr(PAIR_LOSSES[name], "layout", "blocks") in ("blocks", "labels"):
            losses = [float(build_loss(name)(norm * rows, labels)) for norm in (1.0, 3.0)]
            assert (losses[0] != pytest.approx(losses[1], rel=1e-3)) == reads_raw(name), name
            scaled = ScaledLoss(build_loss(name), 3.0)
            assert float(scaled(7 * rows, labels)) == pytest.approx(losses[1], rel=1e-5)


def means(recall, share):
    return {"recall": recall, "norm": 16 * share, "d2_pos": 343 * share, "d2_neg": 277 * share}


def test_a_collapse_is_said_once_until_it_recovers():
    seen = Watch(True, False, False, start=START)
    assert seen.judge(means(0.02, 0.1), 0.5, 100) == []  # too few images
    [line] = seen.judge(means(0.02, 0.1), 0.5, 100)
    assert "warning: the embeddings have collapsed: recall 0.5 -> 0.02" in line
    assert seen.judge(means(0.02, 0.1), 0.5, 200) == []
    assert seen.judge(means(0.4, 0.1), 0.5, 200) == []  # smaller, but as good
    assert len(seen.judge(means(0.02, 0.1), 0.5, 200)) == 1


def test_a_recall_that_falls_while_distances_do_not_is_no_collapse():
    [line] = Watch(True, True, False, start=START).judge(means(0.1, 0.9), 0.5, 200)
    assert "recall in batches is below half" in line and "collapsed" not in line


def test_stop_is_an_error():
    with pytest.raises(CollapseError, match="--on_collapse=stop"):
        Watch(True, True, False, start=START).judge(means(0.02, 0.1), 0.5, 200)
    with pytest.raises(CollapseError, match="all but one point"):
        Watch(True, True, False).judge({}, 1e-6, 8)


@pytest.fixture
def stage1(tiny_flags, tmp_path):
    flags = [*tiny_flags, "--total_iter_num=2", "--test_iter_step=0", "--run_name=stage1"]
    return train_elem.main(flags) / "last.pt"


@pytest.fixture
def pair(tiny_flags, stage1):
    """Run stage 2 from the weights of stage 1, and return its folder."""
    common = [flag for flag in tiny_flags if not flag.startswith(("--loss_name", "--lr"))]

    def run(*flags, loss="eml", steps=4):
        given = [*common, *EML, f"--loss_name={loss}", f"--total_iter_num={steps}", *flags]
        return train_pair.main([*given, f"--pretrained_model={stage1}"])

    return run


def records(folder, kind):
    lines = (folder / "stats.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def test_a_run_ends_with_before_and_after_resumed_or_not(pair, stage1):
    whole = pair("--run_name=whole", "--test_iter_step=2")
    log = (whole / "log.txt").read_text()
    assert re.search(
        r"\] start: loss \S+, of embeddings that are all equal 1\.0000\d\d; recall", log
    )
    assert re.search(r"test_img_num 16, trainbatch 0, test_recall", log)
    assert re.search(r"\] recall@1 +\d\.\d{5}  \d\.\d{5}  [+-]\d\.\d{5}, no interval.*p = ", log)
    [compared] = records(whole, "comparison")
    tests = [test["recall@1"] for test in records(whole, "test")]
    assert (compared["before"], compared["after"]) == pytest.approx((tests[0], tests[-1]))
    of_start = eval_script.main([f"--pretrained_model={stage1}", "--num_workers=0"])
    assert tests[0] == of_start["recall@1"]

    half = pair("--run_name=half", "--test_iter_step=2", steps=2)
    assert pair(f"--checkpoint={half / 'last.pt'}", "--run_name=half", "--test_iter_step=2") == half
    assert records(half, "comparison")[-1] == compared
    assert load_checkpoint(half / "last.pt")["start"]["figures"]["recall"] > 0


def test_what_is_watched_changes_no_number(pair, monkeypatch):
    flags = ["--test_iter_step=2", "--accumulation_steps=2", "--chunk_size=3"]
    seen = pair("--run_name=seen", *flags)
    monkeypatch.setattr(Watch, "begin", lambda self, step, batches, number: iter(batches))
    unseen = pair("--run_name=unseen", "--test_start=False", *flags)
    ours, theirs = (load_checkpoint(run / "last.pt")["model"] for run in (seen, unseen))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    names = ("step", "loss", "recall", "norm")
    figures = [[[r[n] for n in names] for r in records(run, "train")] for run in (seen, unseen)]
    assert figures[0] == figures[1]
    assert len(records(seen, "test")) == len(records(unseen, "test")) + 1
    assert not records(unseen, "comparison")


def test_the_chosen_scale_is_kept_and_resumed(pair):
    flags = ["--normalize_embeddings=True", "--test_iter_step=0", "--alpha=0.5"]
    folder = pair("--run_name=scaled", *flags, steps=1)
    checkpoint = load_checkpoint(folder / "last.pt")
    scale = float(checkpoint["criterion"]["metric_loss.scale"])
    assert any(scale == pytest.approx(grid, rel=0.01) for grid in watch.SCALES)
    options = checkpoint["meta"]["loss_options"]
    assert options["normalize_embeddings"] is True
    assert options["embedding_scale"] == pytest.approx(scale, rel=1e-5)
    assert f"scale {scale:.4g}" in (folder / "log.txt").read_text()

    pair(f"--checkpoint={folder / 'last.pt'}", "--run_name=scaled", steps=2)
    resumed = load_checkpoint(folder / "last.pt")
    assert float(resumed["criterion"]["metric_loss.scale"]) == scale
    fixed = pair("--run_name=fixed", *flags, "--embedding_scale=2.5", steps=1)
    assert float(load_checkpoint(fixed / "last.pt")["criterion"]["metric_loss.scale"]) == 2.5
    result = eval_script.main([f"--pretrained_model={fixed / 'last.pt'}", "--num_workers=0"])
    assert result["queries"] == 16


@pytest.mark.parametrize(
    ("loss", "flags", "words"),
    [
        ("triplet", ["--normalize_embeddings=True"], "--loss_name=triplet, which normalises them"),
        ("eml", ["--embedding_scale=3"], "--embedding_scale is not used (without --normalize"),
        ("eml", ["--embedding_scale=0"], "expected a number above 0 or auto"),
        ("eml", ["--test_start=True", "--test_iter_step=0"], "nothing is tested"),
        ("eml", ["--on_collapse=ignore"], "on_collapse"),
    ],
)
def test_flags_that_nothing_would_use_are_refused(loss, flags, words, pair, capsys):
    with pytest.raises(SystemExit) as stop:
        pair(*flags, loss=loss)
    assert stop.value.code == 2 and words in capsys.readouterr().err


def test_a_collapsed_run_that_is_to_stop_is_saved(pair, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(watch, "COLLAPSED", 10.0)
    with pytest.raises(SystemExit) as stop:
        pair("--run_name=stopped", "--on_collapse=stop", "--test_iter_step=0")
    captured = capsys.readouterr()
    assert stop.value.code == 2 and "the embeddings have collapsed" in captured.err
    assert "stopped after step 1" in captured.out
    assert load_checkpoint(tmp_path / "stopped" / "last.pt")["step"] == 1
