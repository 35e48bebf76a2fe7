"""Flags around a stage-2 loss: joint objective, memory, names of v1 and of the peer library."""

import json
import math
import re

import pytest
import torch

import infer
import train_elem
import train_pair
from metric_learning.common.flags import parse_flags
from metric_learning.engine.options import parts
from metric_learning.engine.options.training import (
    adopt_checkpoint,
    adopt_v1,
    parse_pml_options,
    scale_of_classes,
    settle,
)
from metric_learning.engine.parallel.world import World
from metric_learning.engine.run.checkpoints import load_checkpoint
from metric_learning.engine.train.criterion import build_criterion
from metric_learning.losses import ELEM_LOSSES, FACE_LOSSES, V1_LOSSES, loss_options

SHORT = [
    *("--model=test_resnet", "--train_batch_size=8", "--lr=0.001"),
    *("--display_iter_step=1", "--test_iter_step=0", "--save_iter_step=0"),
]


@pytest.fixture
def train(toy_flags, tmp_path):
    """Run stage 2 for some steps and return the run folder."""

    def run(*flags, steps=2):
        return train_pair.main(
            [*toy_flags, *SHORT, f"--model_save_dir={tmp_path}", f"--total_iter_num={steps}"]
            + list(flags)
        )

    return run


def flags_of(script, *words):
    return parse_flags("", script.FLAGS, words)


def settled(script, *words):
    """The options of a training by a script and its flags."""
    flags = adopt_v1(flags_of(script, *words), World())
    train_set = parts.pick(parts.DataOptions, flags).load("train")
    return settle(flags, train_set, World())


def records(folder):
    return [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]


def test_alpha_adds_a_class_layer_with_the_log_line_of_v1(train, capsys):
    folder = train("--loss_name=tripletloss", "--alpha=0.5", "--train_batch_size=9")
    assert folder.name == "test_resnet_tripletloss"
    form = (
        r"trainbatch 2, lr 0\.001000, loss_metric \d+\.\d{6}, loss_cls \d+\.\d{6}, "
        r"acc1 [01]\.\d{4}, acc5 [01]\.\d{4}, time \d+\.\d\d sec, wait \S+, norm \S+, d2_pos "
        r"\S+, d2_neg \S+, step 2/2, eta 0:00:00$"
    )
    assert re.search(form, (folder / "log.txt").read_text(), re.MULTILINE)
    for record in records(folder):
        total = record["loss_metric"] + 0.5 * record["loss_cls"]
        assert record["loss"] == pytest.approx(total, rel=1e-5) and "recall" not in record
    checkpoint = load_checkpoint(folder / "last.pt")
    assert checkpoint["criterion"]["class_layer.weight"].shape == (6, 96)
    assert len(checkpoint["optimizer"]["param_groups"]) == 2  # the network, the class layer
    capsys.readouterr()
    infer.main([f"--pretrained_model={folder / 'last.pt'}", "--num_workers=0"])
    assert re.search(r"Test-0-score: \[-?\d+\.\d+\], class \[", capsys.readouterr().out)


def test_a_run_with_memory_and_class_layer_resumes_to_the_bit(train):
    flags = ["--loss_name=supcon", "--xbm_size=20", "--xbm_start=1", "--alpha=0.5"]
    whole = train(*flags, "--run_name=whole", "--samples_each_class=4", steps=4)
    half = train(*flags, "--run_name=half", "--samples_each_class=4")
    resumed = train(
        f"--checkpoint={half / 'last.pt'}", "--loss_name=supcon", "--run_name=half", steps=4
    )
    assert resumed == half
    ours, theirs = load_checkpoint(half / "last.pt"), load_checkpoint(whole / "last.pt")
    for part in ("model", "criterion"):
        assert ours[part].keys() == theirs[part].keys()
        assert all(torch.equal(ours[part][name], theirs[part][name]) for name in ours[part])
    assert int(ours["criterion"]["metric_loss.num_remembered"]) == 24
    assert [r["loss"] for r in records(half)] == [r["loss"] for r in records(whole)]


def test_steps_before_the_memory_are_counted_in_updates(train):
    folder = train(
        *("--loss_name=circle", "--xbm_size=99", "--xbm_start=1", "--accumulation_steps=2"), steps=3
    )
    state = load_checkpoint(folder / "last.pt")["criterion"]
    assert (int(state["num_batches"]), int(state["num_remembered"])) == (6, 16)


def test_a_loss_of_the_peer_library_trains_with_its_weights(train):
    folder = train("--loss_name=pml:ProxyAnchorLoss", "--loss_options=margin=0.2,alpha=16")
    assert folder.name == "test_resnet_pml_ProxyAnchorLoss"
    checkpoint = load_checkpoint(folder / "last.pt")
    assert checkpoint["criterion"]["loss.proxies"].shape == (6, 96)
    options = checkpoint["meta"]["loss_options"]
    assert options == {"class_dim": 6, "embedding_size": 96, "margin": 0.2, "alpha": 16}
    again = train(f"--checkpoint={folder / 'last.pt'}", "--loss_name=pml:ProxyAnchorLoss", steps=3)
    assert load_checkpoint(again / "last.pt")["step"] == 3


def test_a_memory_of_raw_embeddings_lies_within_their_scale(train):
    flags = ["--loss_name=hyperbolic", "--samples_each_class=4", "--xbm_size=16"]
    folder = train(*flags, "--normalize_embeddings=True", "--embedding_scale=2", steps=3)
    state = load_checkpoint(folder / "last.pt")["criterion"]
    assert int(state["metric_loss.num_remembered"]) == 24 and float(state["scale"]) == 2
    assert state["metric_loss.embeddings"].norm(dim=1).tolist() == pytest.approx([2.0] * 16)
    raw = load_checkpoint(train(*flags, steps=3) / "last.pt")["criterion"]
    assert raw["embeddings"].norm(dim=1).std() > 0.01


def test_the_class_layer_beside_centres_scores_classes(toy_flags, tmp_path, capsys):
    flags = [*toy_flags, *SHORT, "--loss_name=center", "--class_dropout=0.5"]
    folder = train_elem.main([*flags, f"--model_save_dir={tmp_path}", "--total_iter_num=2"])
    state = load_checkpoint(folder / "last.pt")["criterion"]
    assert state["centers"].shape == (6, 96) and state["centers"].abs().sum() > 0
    capsys.readouterr()
    infer.main([f"--pretrained_model={folder / 'last.pt'}", "--num_workers=0"])
    assert re.search(r"Test-0-score: \[-?\d+\.\d+\], class \[", capsys.readouterr().out)


def test_pairs_are_drawn_for_the_siamese_loss(train):
    assert records(train("--loss_name=siamese"))[0]["loss"] > 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--loss_name=eml", "--xbm_size=9"], "--xbm_size is not used by --loss_name=eml: "),
        (["--loss_name=pml:NCALoss", "--xbm_size=9"], "--xbm_size is not used by --loss_name=pml"),
        (["--loss_name=supcon", "--xbm_start=9"], "--xbm_start is not used (without --xbm_size)"),
        (["--loss_name=supcon", "--xbm_size=7"], "8 images does not fit a memory of 7"),
        (
            ["--loss_name=supcon", "--loss_options=a=1"],
            "--loss_options is not used (--loss_name=supcon has",
        ),
        (["--loss_name=supcon", "--margin=1"], "--margin is not used by --loss_name=supcon"),
        (["--loss_name=triplet", "--samples_each_class=2"], "--samples_each_class is not used"),
        (["--loss_name=siamese", "--samples_each_class=2"], "--samples_each_class is not used"),
        (["--loss_name=siamese", "--train_batch_size=10"], "multiple of 4 (a positive and a neg"),
        (["--loss_name=pml:NCALoss", "--margin=1"], "--margin is not used by --loss_name=pml:NCA"),
        (["--loss_name=pml:NCALoss", "--loss_options=a=1"], "pml:NCALoss has no parameter 'a'"),
        (["--loss_name=pml:NCAloss"], "no loss 'pml:NCAloss'"),
        (["--loss_name=batch_triplet", "--mining=easy"], "expected mining of all, hard"),
    ],
)
def test_a_flag_that_the_loss_does_not_use_is_one_line(train, flags, message, capsys):
    with pytest.raises(SystemExit) as stop:
        train(*flags)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and message in error


@pytest.mark.parametrize("name", V1_LOSSES)
def test_an_epoch_of_v1_is_100_batches(name, toy_flags):
    flags = [*toy_flags, f"--loss_name={name}", "--train_batch_size=6", "--num_epochs=3"]
    options = settled(train_pair, *flags)
    assert (options.loss.loss_name, options.schedule.total_iter_num) == (name, 300)
    assert options.schedule.epoch_size == 600
    assert options.model.transform == "v1"
    assert settled(train_pair, *flags, "--transform=standard").model.transform == "standard"
    assert settled(train_pair, *flags, "--model=test_resnet").model.transform == "standard"
    today = settled(train_pair, *toy_flags, "--loss_name=eml", "--num_epochs=3")
    assert today.schedule.epoch_size == 24 and today.model.transform == "reference"


def test_the_class_layer_of_se_resnext_drops_out(toy_flags):
    model = "--model=SE_ResNeXt50_32x4d"
    for script, flags, dropout in (
        (train_elem, [model], 0.5),
        (train_elem, [model, "--class_dropout=0.2"], 0.2),
        (train_elem, [], 0.0),
        (train_pair, [model, "--alpha=0.1"], 0.5),
        (train_pair, [model, "--alpha=0.1", "--class_dropout=0"], 0.0),
        (train_pair, ["--alpha=0.1"], 0.0),
    ):
        loss = settled(script, *toy_flags, *flags).loss
        criterion = build_criterion(loss, 8, 1, World())
        assert getattr(criterion, "class_layer", criterion).dropout.p == dropout, flags
    with pytest.raises(ValueError, match=r"--class_dropout is not used \(without --alpha"):
        settled(train_pair, *toy_flags, "--class_dropout=0.1")
    with pytest.raises(ValueError, match="--class_dropout is not used by --loss_name=arcmargin"):
        settled(train_elem, *toy_flags, "--loss_name=arcmargin", "--class_dropout=0.1")


def test_a_checkpoint_of_before_has_no_dropout(toy_flags):
    flags = flags_of(train_elem, *toy_flags, "--model=SE_ResNeXt50_32x4d")
    earlier = {name: value for name, value in flags.values.items() if name != "class_dropout"}
    meta = {"flags": earlier, "loss_options": {"label_smoothing": 0.0}}
    resumed = adopt_checkpoint(flags, "last.pt", meta)
    options = settle(resumed, parts.pick(parts.DataOptions, resumed).load("train"), World())
    assert options.loss.options["class_dropout"] == 0


@pytest.mark.parametrize("name", ELEM_LOSSES)
def test_the_scale_of_losses_for_faces_follows_from_few_classes(name, toy_flags, capsys):
    flags = [*toy_flags, f"--loss_name={name}"]
    found = settled(train_elem, *flags).loss.options
    said = capsys.readouterr().out
    if name in FACE_LOSSES:
        assert found["scale"] == pytest.approx(2**0.5 * math.log(5))
        assert said.count("\n") == 1 and "--scale=2.276, sqrt(2) log(C - 1) for 6 classes" in said
        assert settled(train_elem, *flags, "--scale=64").loss.options["scale"] == 64
        assert scale_of_classes(name, 9_999, World())["scale"] == pytest.approx(13.02, abs=0.01)
        assert scale_of_classes(name, 10_000, World()) == {}
    else:
        defaults = {option: value.default for option, value in loss_options(name).items()}
        assert found == {option: defaults[option] for option in found} and not said


def test_a_scale_that_followed_from_the_classes_is_kept(toy_flags, tmp_path, capsys):
    flags = [*toy_flags, "--model=test_resnet", "--loss_name=cosface", "--test_iter_step=0"]
    flags += [f"--model_save_dir={tmp_path}", "--train_batch_size=6", "--save_iter_step=0"]
    folder = train_elem.main([*flags, "--total_iter_num=1"])
    scale = 2**0.5 * math.log(5)
    checkpoint = load_checkpoint(folder / "last.pt")
    assert checkpoint["meta"]["loss_options"]["scale"] == pytest.approx(scale)
    capsys.readouterr()
    train_elem.main([*flags, f"--checkpoint={folder / 'last.pt'}", "--total_iter_num=2"])
    assert "--scale=" not in capsys.readouterr().out
    checkpoint = load_checkpoint(folder / "last.pt")
    assert checkpoint["meta"]["loss_options"]["scale"] == pytest.approx(scale)


def test_the_command_of_v1_trains_whole_triples(train, capsys):
    folder = train(
        *("--loss_name=tripletloss", "--batch_size=20", "--total_images=24", "--class_dim=6"),
        *("--with_mem_opt=True", "--lr_strategy=piecewise_decay"),
    )
    assert "--train_batch_size=21, for 7 whole triples" in capsys.readouterr().out
    assert load_checkpoint(folder / "last.pt")["meta"]["flags"]["train_batch_size"] == 21


def test_options_of_the_peer_library_are_numbers():
    options = parse_pml_options("pml:SoftTripleLoss", "centers_per_class=3, gamma=0.2,la=20.0")
    assert options == {"centers_per_class": 3, "gamma": 0.2, "la": 20}
    assert isinstance(options["centers_per_class"], int)
    for text in ("gamma=high", "embedding_size=3", "distance=1"):
        with pytest.raises(ValueError, match="pml:SoftTripleLoss"):
            parse_pml_options("pml:SoftTripleLoss", text)


def test_ks_of_a_loss_are_a_list():
    flags = ["--loss_name=recall_surrogate", "--recall_ks=1,2"]
    assert parse_flags("", train_pair.FLAGS, flags).recall_ks == (1, 2)
