"""--image_shape with another height than width: in training, tests, caches, exports and indexes."""

import json
import re

import numpy as np
import pytest
import torch

import eval as eval_script
import infer
import metric_learning
import train_elem
import train_pair
from metric_learning.models import build_model, load_weights, save_weights

MACHINE = ["--use_gpu=False", "--num_workers=0"]
SHAPE = "--image_shape=3,48,24"
SHORT = ["--total_iter_num=2", "--display_iter_step=1", "--test_iter_step=2", "--save_iter_step=0"]
MODEL = ["--model=test_resnet", "--transform=standard", SHAPE]


@pytest.fixture(scope="module")
def data(toy_tree):
    return ["--dataset=folder", f"--data_dir={toy_tree}", *MACHINE]


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    flags = ["--loss_name=softmax", "--train_batch_size=8", f"--model_save_dir={folder}"]
    return train_elem.main([*data, *MODEL, *SHORT, *flags])


def losses_of(folder):
    return re.findall(r"trainbatch.*loss ([0-9.]+),", (folder / "log.txt").read_text())


@pytest.mark.parametrize("flags", [["--cache"], ["--augment_on=device"]], ids=["cache", "device"])
def test_a_cache_and_the_device_give_the_crops_of_the_workers(flags, run, data, tmp_path):
    flags = [f"--cache={tmp_path}/cache" if flag == "--cache" else flag for flag in flags]
    flags += ["--loss_name=softmax", "--train_batch_size=8", f"--model_save_dir={tmp_path}"]
    other = train_elem.main([*data, *MODEL, *SHORT, *flags])
    assert losses_of(other) == losses_of(run) and len(losses_of(run)) >= 2
    kept = [torch.load(folder / "last.pt", weights_only=False)["model"] for folder in (run, other)]
    assert all(torch.equal(kept[0][key], kept[1][key]) for key in kept[0])


def test_stage_two_tests_and_users_take_the_shape_from_the_checkpoint(
    run, data, toy_tree, tmp_path
):
    start = [f"--pretrained_model={run / 'last.pt'}", *MACHINE]
    flags = ["--loss_name=eml", "--train_batch_size=8", f"--model_save_dir={tmp_path}", *SHORT]
    second = train_pair.main([*start, *data, *flags])
    checkpoint = second / "last.pt"
    result = eval_script.main([f"--pretrained_model={checkpoint}", *MACHINE, "--tta_scales=0.5,1"])
    assert list(result["evaluated"]["flags"]["image_shape"]) == [3, 48, 24]

    embedder = metric_learning.load(checkpoint, device="cpu")
    assert embedder.model.image_size == (48, 24)
    pictures = sorted(str(path) for path in (toy_tree / "test").rglob("*.png"))[:4]
    assert np.isfinite(embedder(pictures)).all()
    features = [f"--images={toy_tree / 'test'}", f"--index={tmp_path / 'index.npz'}"]
    infer.main([f"--pretrained_model={checkpoint}", *MACHINE, *features])
    index = metric_learning.open_index(tmp_path / "index.npz", embedder)
    [found] = index.search(pictures[:1], 1)
    assert pictures[0].endswith(found[0]["path"]) and found[0]["cosine"] > 0.999


@pytest.mark.parametrize("form", ["onnx", "torchscript", "safetensors"])
def test_an_export_tells_height_and_width(form, run, tmp_path):
    file = tmp_path / f"model.{form}"
    infer.main([f"--pretrained_model={run / 'last.pt'}", f"--export={form}", f"--output={file}"])
    if form == "onnx":
        session = pytest.importorskip("onnxruntime").InferenceSession(file)
        assert session.get_inputs()[0].shape[1:] == [3, 48, 24]
        about = json.loads(session.get_modelmeta().custom_metadata_map["metadata"])
        assert about["image_shape"] == [3, 48, 24]
        assert "covers 48 x 24 pixels" in " ".join(about["preprocessing"])
    elif form == "torchscript":
        assert torch.jit.load(file)(torch.zeros(3, 3, 48, 24)).shape == (3, 96)
    else:
        assert metric_learning.load(file, device="cpu").model.image_size == (48, 24)


def test_a_vision_transformer_is_built_for_height_and_width(tmp_path):
    """Weights of squares are resampled, those of the same height and width stay as they are."""
    square = build_model("test_vit", image_size=64)
    torch.save(square.backbone.state_dict(), tmp_path / "square.pt")
    tall = build_model("test_vit", 8, image_size=(128, 32))  # with as many patches as the square
    load_weights(tall, tmp_path / "square.pt")
    positions = tall.backbone.pos_embed
    assert positions.shape == square.backbone.pos_embed.shape
    assert not torch.equal(positions, square.backbone.pos_embed)

    flags = {"image_shape": (3, 128, 32)}
    about = {"model": "test_vit", "embedding_size": 8, "flags": flags}
    save_weights(tall, tmp_path / "tall.safetensors", about)
    again = build_model("test_vit", 8, image_size=(128, 32))
    load_weights(again, tmp_path / "tall.safetensors")
    assert torch.equal(again.backbone.pos_embed, positions)
    assert again(torch.zeros(2, 3, 128, 32)).shape == (2, 8)


def test_a_network_for_squares_alone_is_one_line(error_of, data, tiny_clips):
    words = ["--pretrained_model=random", *data, "--image_shape=3,64,32"]
    error = error_of(eval_script.main, [*words, "--model=open_clip:tiny-resnet"])
    assert "open_clip:tiny-resnet" in error and "64 x 32 px" in error
    with torch.inference_mode():
        for name in ("tiny", "tiny-timm"):  # which open_clip builds for any height and width
            tower = build_model(f"open_clip:{name}", image_size=(64, 32)).eval()
            assert tower(torch.zeros(1, 3, 64, 32)).shape == (1, 24)


def test_a_crop_that_an_image_does_not_hold_is_one_line(error_of, data):
    flags = [*data, *MODEL, "--loss_name=softmax", "--train_crop=random", "--resize_first=40"]
    error = error_of(train_elem.main, flags)
    assert "--resize_first=40 is smaller than the crop of 48 x 24 pixels" in error
