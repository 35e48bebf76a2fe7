"""--average_with_start: weights between those that a training started from and its own."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import eval as eval_script
import infer
import train_elem
import train_pair
from metric_learning.models.averaging import average_with
from metric_learning.models.build import build_model

MACHINE = ["--use_gpu=False", "--num_workers=0"]


@pytest.fixture(scope="module")
def stages(toy_flags, tmp_path_factory):
    """Folders of a stage 1 and of a stage 2 from it, whose weights moved far."""
    folder = tmp_path_factory.mktemp("stages")
    flags = [*toy_flags, "--model=test_resnet", "--train_batch_size=6", "--test_iter_step=0"]
    flags += [f"--model_save_dir={folder}", "--total_iter_num=3", "--embedding_size=8"]
    first = train_elem.main([*flags, "--lr=0.01"])
    more = ["--loss_name=supcon", f"--pretrained_model={first / 'last.pt'}", "--lr=0.1"]
    return first, train_pair.main([*flags, *more, "--keep_loss=1"])


def weights(folder):
    return load_file(folder / "last.safetensors")


def mean_of(first, second, share):
    """What numpy makes of two sets of weights."""
    before, after = weights(first), weights(second)
    assert sum(not torch.equal(before[name], after[name]) for name in before) > 20
    return {
        name: (1 - share) * after[name].double().numpy() + share * before[name].double().numpy()
        if after[name].is_floating_point()
        else after[name].numpy()
        for name in after
    }


def export(model, file, *flags):
    infer.main([f"--pretrained_model={model}", f"--output={file}", *map(str, flags)])
    return load_file(file)


@pytest.mark.parametrize("kind", ["last.pt", "last.safetensors"])
def test_an_export_holds_the_mean_of_all_weights_and_statistics(kind, stages, tmp_path):
    first, second = stages
    file = tmp_path / "mean.safetensors"
    flags = ["--export=safetensors", "--average_with_start=0.25"]
    found = export(second / kind, file, *flags)
    expected = mean_of(first, second, 0.25)
    assert any("running_var" in name for name in found) and found.keys() == expected.keys()
    for name in found:
        np.testing.assert_allclose(found[name].numpy(), expected[name], rtol=1e-6, atol=1e-7)

    with safe_open(file, framework="pt") as opened:
        metadata = json.loads(opened.metadata()["metadata"])
    about = metadata["average_with_start"]
    assert about["share"] == 0.25 and about["weights"] == "last.pt"
    assert about["fingerprint"].startswith("sha256:") and "class_layer" not in str([*found])


def test_a_share_of_none_and_all_give_back_both_ends():
    torch.manual_seed(0)
    model, start = build_model("test_resnet", 4), build_model("test_resnet", 4)
    tuned = {name: value.clone() for name, value in model.state_dict().items()}
    average_with(model, start, 0.0)
    assert all(torch.equal(value, tuned[name]) for name, value in model.state_dict().items())
    average_with(model, start, 1.0)
    before = start.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_results_and_kept_features_are_those_of_the_mean(
    stages, toy_tree, tmp_path, capsys, error_of
):
    second = stages[1]
    about = [f"--pretrained_model={second / 'last.pt'}", *MACHINE]
    averaged = [*about, "--average_with_start=0.5"]
    exported = tmp_path / "mean.safetensors"
    export(second / "last.pt", exported, "--export=safetensors", "--average_with_start=0.5")
    mean, whole, other = tmp_path / "mean.npy", tmp_path / "whole.npy", tmp_path / "other.npy"
    result = eval_script.main([*averaged, f"--features={mean}", f"--json={tmp_path / 'r.json'}"])
    assert "0.5 of them and 0.5 of " in capsys.readouterr().out
    eval_script.main([*about, f"--features={whole}"])
    data = ["--dataset=folder", f"--data_dir={toy_tree}", *MACHINE]
    eval_script.main([f"--pretrained_model={exported}", *data, f"--features={other}"])
    np.testing.assert_array_equal(np.load(mean), np.load(other))
    assert np.abs(np.load(mean) - np.load(whole)).max() > 1e-3

    assert result["evaluated"]["recipe"]["--average_with_start"] == 0.5
    assert "acc1" not in result
    assert "weights" in error_of(eval_script.main, [*about, f"--features={mean}"])


def test_an_index_is_of_the_mean(stages, toy_tree, tmp_path, error_of):
    about = [f"--pretrained_model={stages[1] / 'last.pt'}", *MACHINE]
    index = f"--index={tmp_path / 'images.index'}"
    infer.main([*about, f"--images={toy_tree / 'test'}", index, "--average_with_start=0.5"])
    query = f"--query={toy_tree / 'test' / 'class_6' / '0.png'}"
    [found] = infer.main([*about, index, query, "--topk=1", "--average_with_start=0.5"])
    assert found["neighbours"][0]["path"].endswith("class_6/0.png")
    error = error_of(infer.main, [*about, index, query, "--topk=1"])
    assert "was built with other weights" in error and "averaged with 0.5 of" in error


def test_a_start_that_has_moved_or_is_another_is_refused(stages, toy_flags, tmp_path, error_of):
    first, second = stages
    about = [f"--pretrained_model={tmp_path / 'tuned.pt'}", *MACHINE, "--average_with_start=0.5"]
    shutil.copy(second / "last.pt", tmp_path / "tuned.pt")
    moved = first.with_name("moved")
    first.rename(moved)
    try:
        assert "is not there: say where it is now by --start" in error_of(eval_script.main, about)
        eval_script.main([*about, f"--start={moved / 'last.pt'}"])
        eval_script.main([*about, f"--start={moved / 'last.safetensors'}"])  # the same tensors
        other = [*about, f"--start={second / 'last.pt'}"]
        assert "holds other weights than those" in error_of(eval_script.main, other)
    finally:
        moved.rename(first)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--start=a.pt"], "--start is not used (without --average_with_start)"),
        (["--average_with_start=1"], "expected a number of 0 to below 1"),
        (["--average_with_start=0.5", "--class_dim=6"], "--class_dim is not used"),
        (["--average_with_start=0.5", "FIRST"], "started from random weights"),
        (["--average_with_start=0.5", "EXPORTED"], "does not say what its training started from"),
        (["--average_with_start=0.5", "--pretrained_model=random"], "does not say what its"),
        (
            ["--average_with_start=0.5", "--compare", "SECOND", "SECOND"],
            "--average_with_start is not used (with --compare)",
        ),
    ],
)
def test_what_cannot_be_averaged_is_one_line(flags, message, stages, tmp_path, error_of):
    first, second = stages
    words = [str(second / "last.pt") if word == "SECOND" else word for word in flags]
    model = second / "last.pt"
    if "FIRST" in words:
        model = first / "last.pt"
    if "EXPORTED" in words:
        model = tmp_path / "model.safetensors"
        export(second / "last.pt", model, "--export=safetensors")
    words = [word for word in words if word not in ("FIRST", "EXPORTED")]
    is_named = "--compare" in words or any("pretrained_model" in word for word in words)
    named = [] if is_named else [f"--pretrained_model={model}"]
    assert message in error_of(eval_script.main, [*named, *MACHINE, *words])


def test_a_network_that_grew_cannot_be_averaged(stages, toy_flags, tmp_path, error_of):
    flags = [*toy_flags, "--model=test_resnet", "--train_batch_size=6", "--test_iter_step=0"]
    flags += [f"--model_save_dir={tmp_path}", "--total_iter_num=1"]
    bare = train_elem.main([*flags, "--run_name=bare"]) / "last.pt"
    grown = train_elem.main([*flags, f"--pretrained_model={bare}", "--embedding_size=8"])
    about = [f"--pretrained_model={grown / 'last.pt'}", *MACHINE, "--average_with_start=0.5"]
    assert "lacks embedding." in error_of(eval_script.main, about)
