"""infer.py --export=hub: timm and this project read the folder back and embed as before."""

import json
import shutil

import numpy as np
import pytest
import timm
import torch

import eval as eval_script
import infer
import train_pair
from metric_learning import load
from metric_learning.models.hub import resolve_model
from metric_learning.models.weights.files import read_metadata

MACHINE = ["--use_gpu=False", "--num_workers=0"]


@pytest.fixture(scope="module", params=[0, 16])
def run(request, toy_flags, tmp_path_factory):
    """A run of a tiny network, without an embedding layer and with one."""
    folder = tmp_path_factory.mktemp("runs")
    flags = [*(flag for flag in toy_flags if not flag.startswith("--model=")), "--loss_name=eml"]
    flags += ["--train_batch_size=8", "--total_iter_num=2", "--test_iter_step=2", "--lr=0.001"]
    flags += [f"--model_save_dir={folder}", f"--embedding_size={request.param}"]
    return train_pair.main([*flags, "--model=test_resnet"])


def export(weights, folder, *flags):
    return infer.main(
        [f"--pretrained_model={weights}", "--export=hub", f"--output={folder}", *flags]
    )


def test_a_round_trip_gives_the_same_embeddings(run, toy_tree, tmp_path):
    folder = export(run / "best.pt", tmp_path / "shop")
    paths = sorted(map(str, (toy_tree / "test").glob("*/*.png")))
    expected = load(run / "best.pt")(paths)
    np.testing.assert_array_equal(load(folder)(paths), expected)
    assert resolve_model(str(folder)) == ("test_resnet", str(folder))

    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        own = load(run / "best.pt").model(images)
        assert torch.allclose(network(images), own, atol=1e-6 * float(own.abs().max()))
    data = timm.data.resolve_model_data_config(network)
    assert [*data["input_size"]] == [3, 32, 32] and data["crop_pct"] == 1.0
    assert sorted(file.name for file in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]


def test_the_card_has_figures_and_data(run, tmp_path):
    card = (export(run / "best.pt", tmp_path / "shop") / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: timm\n")
    assert "the loss `eml` on `folder`" in card and "6 training classes" in card
    assert "the highest Recall@1 of" in card and "| recall@1 | " in card
    result = tmp_path / "result.json"
    found = eval_script.main(
        [f"--pretrained_model={run / 'best.pt'}", *MACHINE, f"--json={result}"]
    )
    card = (
        export(run / "best.pt", tmp_path / "shop", f"--figures={result}") / "README.md"
    ).read_text()
    chance = 100 * found["recall@1_chance"]
    assert f"| recall@1 | {100 * found['recall@1']:.2f} | {chance:.2f} |" in card
    assert "On the test split of `folder`, by eval.py" in card
    assert "warning: best.pt was chosen by tests on these very images" in card


def test_a_second_stage_starts_from_a_folder(run, toy_flags, tmp_path):
    folder = export(run / "last.safetensors", tmp_path / "shop")
    flags = [*(flag for flag in toy_flags if not flag.startswith("--model=")), "--loss_name=eml"]
    flags += ["--train_batch_size=8", "--total_iter_num=1", "--test_iter_step=0", "--lr=0.001"]
    second = train_pair.main([*flags, f"--model={folder}", f"--model_save_dir={tmp_path}"])
    assert second.name == "test_resnet_eml"
    first, after = (read_metadata(one / "last.pt") for one in (run, second))
    assert after["embedding_size"] == first["embedding_size"]
    assert after["flags"]["pretrained_model"] == str(folder)


def test_a_clone_of_a_repository_is_kept_and_the_rest_replaced(run, tmp_path):
    folder = tmp_path / "clone"
    (folder / ".git").mkdir(parents=True)
    (folder / ".git" / "HEAD").write_text("ref")
    export(run / "best.pt", folder)
    export(run / "last.pt", folder)
    assert (folder / ".git" / "HEAD").read_text() == "ref"
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit):
        export(run / "last.pt", folder)
    assert (folder / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--export=hub needs a folder to write"),
        (["--output={new}", "--normalize"], "--normalize is not used"),
        (["--output={new}", "--figures={run}/args.json"], "none that says what it is of"),
        (["--output={new}", "--figures=nowhere.json"], "nowhere.json"),
    ],
)
def test_wrong_exports_are_one_line(run, flags, message, tmp_path, capsys):
    words = [flag.format(new=tmp_path / "new", run=run) for flag in flags]
    with pytest.raises(SystemExit) as stop:
        infer.main([f"--pretrained_model={run / 'best.pt'}", "--export=hub", *words])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and message in error
    assert not (tmp_path / "new").exists()


def test_what_timm_cannot_build_is_refused(toy_flags, tmp_path, capsys):
    words = ["--model=ResNet18", "--pooling=gem", "--image_shape=3,32,32"]
    with pytest.raises(SystemExit):
        infer.main([*words, "--pretrained_model=random", "--export=hub", f"--output={tmp_path}/a"])
    assert "timm builds no ResNet18 with --pooling=gem" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config | {"architecture": "no_such_net"}, "has no model no_such_net"),
        (lambda config: config | {"model_args": {"depth": 3}}, "is changed by depth=3"),
        (lambda config: config["pretrained_cfg"].update(std=[0, 0, 0]) or config, "above 0 as std"),
        (lambda config: [1], "expected a JSON object"),
    ],
)
def test_a_damaged_folder_is_one_line(run, change, message, tmp_path, capsys):
    folder = export(run / "best.pt", tmp_path / "shop")
    file = folder / "config.json"
    config = json.loads(file.read_text())
    del config["metric_learning"]
    file.write_text(json.dumps(change(config)))
    with pytest.raises(SystemExit) as stop:
        eval_script.main([f"--model={folder}", *MACHINE])
    assert stop.value.code == 2 and message in capsys.readouterr().err
    (folder / "model.safetensors").unlink()
    shutil.copy(run / "args.json", file)
    with pytest.raises(SystemExit):
        eval_script.main([f"--model={folder}", *MACHINE])
    assert capsys.readouterr().err.count("\n") == 1
