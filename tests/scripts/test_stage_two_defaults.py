"""What a training takes from the weights that it starts from."""

import json

import pytest
import torch

import train_elem
import train_pair
from metric_learning.engine.run.checkpoints import load_checkpoint
from metric_learning.models import read_metadata

STEPS = ["--total_iter_num=1", "--test_iter_step=0", "--train_batch_size=8", "--lr=0.001"]
HEAD = ["--embedding_size=8", "--pooling=max"]
SIZE = ["--model=test_resnet", "--image_shape=3,48,48", "--transform=standard"]


@pytest.fixture(scope="module")
def data(toy_flags):
    """The flags of the toy set alone."""
    return [flag for flag in toy_flags if not flag.startswith(("--image_shape", "--model"))]


@pytest.fixture(scope="module")
def stage_one(data, tmp_path_factory):
    folder = f"--model_save_dir={tmp_path_factory.mktemp('runs')}"
    return train_elem.main([*data, *SIZE, *HEAD, *STEPS, folder]) / "last.pt"


def flags_of(folder):
    return json.loads((folder / "args.json").read_text())["flags"]


@pytest.mark.parametrize("name", ["last.pt", "last.safetensors"])
def test_stage_2_goes_on_as_its_weights_were_trained(name, data, stage_one, tmp_path, capfd):
    weights = f"--pretrained_model={stage_one.with_name(name)}"
    flags = [*data, *STEPS, weights, "--loss_name=eml", f"--model_save_dir={tmp_path}"]
    folder = train_pair.main(flags)
    assert folder.name == "test_resnet_eml"
    assert flags_of(folder).items() >= {"model": "test_resnet", "pooling": "max"}.items()
    assert (
        flags_of(folder)["image_shape"] == [3, 48, 48] and flags_of(folder)["embedding_size"] == 8
    )
    line = f"as {stage_one.with_name(name)} was trained: --model=test_resnet, --embedding_size=8"
    printed = capfd.readouterr()
    assert line in printed.out + printed.err and "warning" not in printed.out + printed.err


def test_what_is_given_wins_and_is_told(data, stage_one, tmp_path, capfd):
    flags = [*data, *STEPS, f"--pretrained_model={stage_one}", "--loss_name=eml"]
    folder = train_pair.main([*flags, "--image_shape=3,32,32", f"--model_save_dir={tmp_path}"])
    assert read_metadata(folder / "last.pt")["image_shape"] == (3, 32, 32)
    printed = "".join(capfd.readouterr())
    assert "was trained with --image_shape=3,48,48, this run takes --image_shape=3,32,32" in printed


def test_a_resumed_run_keeps_its_own_and_needs_no_weights(data, stage_one, tmp_path):
    """Given flags go before those of the checkpoint, and these before those of the weights."""
    copy = tmp_path / "copy.pt"
    copy.write_bytes(stage_one.read_bytes())
    flags = [*data, f"--pretrained_model={copy}", "--loss_name=eml", f"--model_save_dir={tmp_path}"]
    flags += ["--checkpoint=auto", *STEPS[1:], "--image_shape=3,32,32"]
    folder = train_pair.main([*flags, STEPS[0]])
    train_pair.main([*flags, "--total_iter_num=2"])
    copy.unlink()
    last = f"--checkpoint={folder / 'last.pt'}"
    train_pair.main(
        [*data, last, "--loss_name=eml", "--total_iter_num=3", f"--model_save_dir={tmp_path}"]
    )
    found = load_checkpoint(folder / "last.pt")
    assert found["step"] == 3 and flags_of(folder)["image_shape"] == [3, 32, 32]


def test_a_share_of_the_rate_goes_on_with_the_optimizer(data, toy_flags, tmp_path, capfd):
    folder = [f"--model_save_dir={tmp_path}"]
    adam = ["--optimizer=adam", "--lr_head_mult=3", "--weight_decay=0.02"]
    weights = train_elem.main([*toy_flags, *STEPS, *adam, *folder]) / "last.pt"
    flags = [*data, *STEPS[:3], "--loss_name=eml", "--lr_of_start=0.25", "--checkpoint=auto"]
    flags += ["--keep_loss=1"]
    run = train_pair.main([*flags, *folder, f"--pretrained_model={weights}"])
    found = {"lr": 0.00025, "optimizer": "adam", "lr_head_mult": 3, "weight_decay": 0.02}
    assert flags_of(run).items() >= found.items()
    assert f"--lr=0.00025, 0.25 times that of {weights}" in "".join(capfd.readouterr())

    more = [*flags, *folder, f"--pretrained_model={weights}", "--total_iter_num=2"]
    assert train_pair.main([flag for flag in more if flag != STEPS[0]]) == run
    assert flags_of(run).items() >= found.items()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lr=0.1"], "expected --lr or --lr_of_start, found both"),
        (["--optimizer=adam"], "was made with --optimizer=sgd, found --optimizer=adam"),
        (["--pretrained_model=none"], "is a share of the rate of --pretrained_model=CHECKPOINT"),
    ],
)
def test_a_share_of_no_rate_is_refused(flags, message, data, stage_one, tmp_path, capsys):
    start = [f"--pretrained_model={stage_one}"] if "--pretrained_model=none" not in flags else SIZE
    own = [flag for flag in flags if flag != "--pretrained_model=none"]
    with pytest.raises(SystemExit):
        train_pair.main(
            [*data, *STEPS[:3], *start, *own, "--loss_name=eml", "--lr_of_start=0.25"]
            + [f"--model_save_dir={tmp_path}"]
        )
    assert message in capsys.readouterr().err


def test_weights_that_say_no_rate_are_named(data, stage_one, tmp_path, capsys):
    """An exported network knows its model, but not its training's rate."""
    bare = tmp_path / "bare.pt"
    meta = {k: v for k, v in load_checkpoint(stage_one)["meta"].items() if k != "flags"}
    torch.save({"model": load_checkpoint(stage_one)["model"], "meta": meta}, bare)
    flags = [*data, *STEPS[:3], *SIZE, *HEAD, f"--pretrained_model={bare}", "--loss_name=eml"]
    with pytest.raises(SystemExit):
        train_pair.main([*flags, "--lr_of_start=0.25", f"--model_save_dir={tmp_path}"])
    assert f"--lr_of_start: {bare} does not say at which rate" in capsys.readouterr().err
