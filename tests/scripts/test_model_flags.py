"""Options of the model through training, resuming, evaluation and search."""

import pytest
import torch

import eval as eval_script
import infer
import train_elem
import train_pair
from metric_learning.engine.run.checkpoints import load_checkpoint
from metric_learning.models import MODEL_OPTIONS, build_model, read_metadata

HEAD = ["--pooling=gem", "--last_stride=1", "--feature_norm=bnneck", "--embedding_size=8"]
OPTIONS = {"pooling": "gem", "last_stride": 1, "feature_norm": "bnneck"}
# What else changes how weights are trained.
OTHERS = ["--freeze_bn=True", "--lr_head_mult=5", "--ema_decay=0.5", "--chunk_size=4"]
OTHERS += ["--optimizer=adamw", "--lr=0.01", "--test_iter_step=0"]
GEM = "backbone.global_pool.pool.p"
MACHINE = ["--use_gpu=False", "--num_workers=0"]


@pytest.fixture(scope="module")
def tiny_flags(toy_flags):
    """Flags of a run of a tiny network."""
    return [*toy_flags, "--model=test_resnet", "--train_batch_size=8"]


@pytest.fixture(scope="module")
def trained(tiny_flags, tmp_path_factory):
    """The checkpoint of a run with all options."""
    steps = ["--total_iter_num=2", "--test_iter_step=2"]
    folder = f"--model_save_dir={tmp_path_factory.mktemp('runs')}"
    return train_pair.main([*tiny_flags, *HEAD, *steps, "--loss_name=eml", folder]) / "last.pt"


def test_the_checkpoint_alone_rebuilds_the_model(trained):
    meta = read_metadata(trained)
    assert {name: meta[name] for name in MODEL_OPTIONS} == OPTIONS
    tested = load_checkpoint(trained)["best"]["recall@1"]
    for name in ("last.pt", "last.safetensors"):
        result = eval_script.main([f"--pretrained_model={trained.parent / name}", *MACHINE])
        assert result["recall@1"] == tested
        flags = result["evaluated"]["flags"]
        assert {option: flags[option] for option in MODEL_OPTIONS} == OPTIONS


@pytest.mark.parametrize(
    "flag", ["--pooling=own", "--pooling=max", "--last_stride=2", "--feature_norm=layernorm"]
)
def test_flags_that_contradict_the_checkpoint_are_refused(trained, error_of, flag):
    name = flag[2:].partition("=")[0]
    error = error_of(eval_script.main, [f"--pretrained_model={trained}", flag, *MACHINE])
    assert f"was made with --{name}={OPTIONS[name]}, found {flag}: leave" in error


def test_a_stage_takes_the_options_of_its_weights(trained, tiny_flags, tmp_path, error_of):
    flags = [*tiny_flags, f"--pretrained_model={trained}", "--total_iter_num=1"]
    flags += ["--test_iter_step=0", f"--model_save_dir={tmp_path}"]
    metadata = read_metadata(train_elem.main(flags) / "last.pt")
    assert {name: metadata[name] for name in MODEL_OPTIONS} == OPTIONS
    assert "pooling" in error_of(train_elem.main, [*flags, "--pooling=own"])


def test_an_index_remembers_the_options(toy_tree, tiny_flags, tmp_path, error_of):
    weights = tmp_path / "weights.pth"
    torch.save(build_model("test_resnet").backbone.state_dict(), weights)
    base = [*MACHINE, f"--pretrained_model={weights}", f"--index={tmp_path / 'a.index'}"]
    images = [f"--images={toy_tree / 'test'}", "--model=test_resnet", "--image_shape=3,32,32"]
    infer.main([*base, *images, "--pooling=gem"])  # its exponent is as new
    query = [*base, f"--query={toy_tree / 'test'}", "--topk=1"]
    answers = infer.main(query)
    assert all(answer["neighbours"][0]["cosine"] > 0.9999 for answer in answers)
    assert "was made with --pooling=" in error_of(infer.main, [*query, "--pooling=own"])


def test_features_of_another_pooling_are_not_taken_for_these(toy_flags, tmp_path, error_of):
    file = f"--features={tmp_path / 'a.npy'}"
    flags = [*toy_flags, "--model=test_resnet", "--pretrained_model=random", file]
    eval_script.main([*flags, "--pooling=max"])
    error = error_of(eval_script.main, flags)
    assert "features of other model (test_resnet, pooling max, not test_resnet)" in error


def test_a_norm_that_the_weights_lack_is_an_error_of_evaluation(tmp_path, toy_flags, error_of):
    torch.save(build_model("ResNet18").backbone.state_dict(), tmp_path / "weights.pth")
    flags = [*toy_flags, f"--pretrained_model={tmp_path / 'weights.pth'}"]
    assert "lacks feature_norm.weight" in error_of(
        eval_script.main, [*flags, "--feature_norm=bnneck"]
    )


def test_a_run_with_all_options_resumes_to_the_bit(tiny_flags, tmp_path, error_of):
    flags = [*tiny_flags, *HEAD, *OTHERS, "--loss_name=arcmargin", f"--model_save_dir={tmp_path}"]
    whole = train_elem.main([*flags, "--total_iter_num=4", "--run_name=whole"])
    half = train_elem.main([*flags, "--total_iter_num=2", "--run_name=half"])
    resume = ["--loss_name=arcmargin", f"--checkpoint={half / 'last.pt'}"]
    assert "made with --pooling=gem, found --pooling=max" in error_of(
        train_elem.main, [*resume, "--pooling=max"]
    )
    train_elem.main([*resume, "--total_iter_num=4"])
    ours, theirs = (load_checkpoint(folder / "last.pt") for folder in (half, whole))
    for part in ("model", "live_model", "criterion"):
        assert all(torch.equal(value, theirs[part][key]) for key, value in ours[part].items())
    live = ours["live_model"]
    assert live[GEM] != 3 and live["feature_norm.running_mean"].any()
    assert not live["feature_norm.bias"].any() and (live["feature_norm.weight"] != 1).any()
    assert not live["backbone.bn1.running_mean"].any()  # --freeze_bn


def test_checkpoints_from_before_the_options_still_load(tiny_flags, tmp_path, error_of):
    flags = ["--loss_name=arcmargin", "--test_iter_step=0", f"--model_save_dir={tmp_path}"]
    run = train_elem.main([*tiny_flags, *flags, "--total_iter_num=1"])
    checkpoint = torch.load(run / "last.pt", weights_only=True)
    for name in MODEL_OPTIONS:
        del checkpoint["meta"][name], checkpoint["meta"]["flags"][name]
    torch.save(checkpoint, run / "last.pt")
    path = run / "last.pt"
    result = eval_script.main([f"--pretrained_model={path}", "--last_stride=2", *MACHINE])
    assert result["queries"] == 16
    gem = [f"--pretrained_model={path}", "--pooling=gem", *MACHINE]
    assert "made with --pooling=own, found --pooling=gem" in error_of(eval_script.main, gem)
    resume = ["--loss_name=arcmargin", f"--checkpoint={path}", "--total_iter_num=2"]
    assert "made with --pooling=own" in error_of(train_elem.main, [*resume, "--pooling=gem"])
    train_elem.main([*resume, "--feature_norm=none"])
    assert load_checkpoint(path)["step"] == 2
