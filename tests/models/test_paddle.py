"""Tests of models.paddle and models.array_pickle."""

import io
import lzma
import os
import pickle
import struct
import tarfile

import numpy as np
import pytest
import torch

from metric_learning.common.array_pickle import read_array_pickle
from metric_learning.models import build_model, load_classifier, load_weights
from metric_learning.models.weights.paddle import BATCH_NORM, to_state_dict

INVERSE_BATCH_NORM = {torch_name: paddle_name for paddle_name, torch_name in BATCH_NORM.items()}


@pytest.fixture
def resnet18():
    torch.manual_seed(0)
    model = build_model("ResNet18", 8)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return model


def paddle_name(key):
    """Name a key of a torch ResNet as Paddle does, written apart from the module under test."""
    if key.startswith("embedding."):
        return {"weight": "fc_0.w_0", "bias": "fc_0.b_0"}[key.split(".")[1]]
    parts = key.removeprefix("backbone.").split(".")
    if len(parts) == 2:
        is_conv = parts[0] == "conv1"
        return "conv1_weights" if is_conv else f"bn_conv1_{INVERSE_BATCH_NORM[parts[1]]}"
    stage, block = int(parts[0][-1]) + 1, chr(ord("a") + int(parts[1]))
    if parts[2] == "downsample":
        kind, branch = ("res", "1") if parts[3] == "0" else ("bn", "1")
    else:
        kind = "res" if parts[2].startswith("conv") else "bn"
        branch = "2" + "abc"[int(parts[2][-1]) - 1]
    part = "weights" if kind == "res" else INVERSE_BATCH_NORM[parts[-1]]
    return f"{kind}{stage}{block}_branch{branch}_{part}"


def paddle_arrays(model):
    state = {k: v.numpy() for k, v in model.state_dict().items() if not k.endswith("tracked")}
    return {
        paddle_name(key): array.T if key == "embedding.weight" else array
        for key, array in state.items()
    }


def varint(value):
    """Write an integer as protobuf does."""
    low, rest = value & 127, value >> 7
    return bytes([low | 128]) + varint(rest) if rest else bytes([low])


def variable(array, packed=False):
    """Write an array as Paddle does."""
    sizes = [varint(size) for size in array.shape]
    if packed:
        description = b"\x08\x05\x12" + varint(len(b"".join(sizes))) + b"".join(sizes)
    else:
        description = b"\x08\x05" + b"".join(b"\x10" + size for size in sizes)
    head = struct.pack("<IQIi", 0, 0, 0, len(description))
    return head + description + np.ascontiguousarray(array, "<f4").tobytes()


def write_folder(folder, arrays):
    folder.mkdir()
    for name, array in arrays.items():
        (folder / name).write_bytes(variable(array))
    return folder


def check_features(model, fixture):
    expected = fixture["feature"]
    with torch.no_grad():
        features = model.eval()(torch.from_numpy(fixture["image"])).numpy()
    assert np.abs(features - expected).max() <= 1e-4 * np.abs(expected).max()
    np.testing.assert_allclose(features, expected, rtol=1e-3, atol=1e-6)


def test_reference_archive_and_folder(shared, tmp_path):
    archive = shared / "reference/ResNet50_emb0_vars.tar.xz"
    fixture = np.load(shared / "reference/ResNet50_emb0_forward.npz")
    model = build_model("ResNet50")
    report = load_weights(model, archive)
    assert (report.missing, report.unexpected) == ([], [])
    check_features(model, fixture)

    with tarfile.open(archive) as file:
        file.extractall(tmp_path, filter="data")
    from_folder = build_model("ResNet50")
    report = load_weights(from_folder, tmp_path / "ResNet50_emb0_vars")
    assert report.source == "paddle folder"
    state = model.state_dict()
    assert all(torch.equal(state[k], v) for k, v in from_folder.state_dict().items())


def test_reference_pickle(shared, tmp_path):
    path = tmp_path / "ResNet50_emb128.pdparams"
    path.write_bytes(lzma.decompress((shared / f"reference/{path.name}.xz").read_bytes()))
    model = build_model("ResNet50", 128)
    report = load_weights(model, tmp_path / "ResNet50_emb128")
    assert (report.missing, report.unexpected) == ([], [])
    check_features(model, np.load(shared / "reference/ResNet50_emb128_forward.npz"))

    with pytest.raises(ValueError, match="pass --embedding_size=128"):
        load_weights(build_model("ResNet50"), path)


@pytest.mark.parametrize("form", ["pickle", "folder", "tar", "tar.gz"])
def test_round_trip_of_basic_blocks(form, resnet18, tmp_path):
    arrays = paddle_arrays(resnet18)
    path = tmp_path / f"weights.{form}"
    if form == "pickle":
        path.write_bytes(pickle.dumps(arrays))
    else:
        folder = write_folder(tmp_path / "vars", arrays)
        path = folder if form == "folder" else path
        if form != "folder":
            options = {"compresslevel": 1} if form == "tar.gz" else {}
            with tarfile.open(path, f"w:{form[4:]}", **options) as archive:
                archive.add(folder, "vars")
    model = build_model("ResNet18", 8)
    report = load_weights(model, path)
    assert (report.missing, report.unexpected) == ([], [])
    state = model.state_dict()
    assert all(torch.equal(state[k], v) for k, v in resnet18.state_dict().items())


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("array", [np.arange(6.0).reshape(2, 3), np.arange(6).reshape(2, 3).T])
def test_pickle_protocols(protocol, array, tmp_path):
    path = tmp_path / "weights.pdparams"
    for swapped in (array, array.astype(array.dtype.newbyteorder(">"))):
        path.write_bytes(pickle.dumps({"name": swapped, "extra": "text"}, protocol=protocol))
        assert np.array_equal(read_array_pickle(path)["name"], array)


def test_names_of_deep_models():
    arrays = {
        "res4b22_branch2c_weights": np.zeros((4, 2, 1, 1), np.float32),
        "bn4b1_branch2b_variance": np.zeros(2, np.float32),
        "res3h_branch2a_weights": np.zeros((2, 4, 1, 1), np.float32),
        "bn5a_branch1_mean": np.zeros(4, np.float32),
    }
    assert set(to_state_dict(arrays, 2048, 0)) == {
        "layer3.22.conv3.weight",
        "layer3.1.bn2.running_var",
        "layer2.7.conv1.weight",
        "layer4.0.downsample.1.running_mean",
    }


def test_training_folder_keeps_optimizer_out_and_reports_heads(resnet18, tmp_path):
    arrays = paddle_arrays(resnet18) | {"weight_norm": np.zeros((5, 8), np.float32)}
    folder = write_folder(tmp_path / "1000", arrays)
    for name in ("conv1_weights_velocity_0", "learning_rate_0", "@LR_DECAY_COUNTER@"):
        (folder / name).write_bytes(variable(np.zeros(1, np.float32)))
    (folder / "README.md").write_text("notes")
    report = load_weights(build_model("ResNet18", 8), folder)
    assert (report.missing, report.unexpected) == ([], ["weight_norm"])


@pytest.mark.parametrize(("num_classes", "embedding_size"), [(1000, 0), (11318, 0), (1000, 8)])
def test_class_layer_is_not_taken_for_an_embedding(num_classes, embedding_size, resnet18, tmp_path):
    arrays = paddle_arrays(resnet18)
    arrays["fc_0.w_0"] = np.zeros((512, num_classes), np.float32)
    arrays["fc_0.b_0"] = np.zeros(num_classes, np.float32)
    model = build_model("ResNet18", embedding_size)
    report = load_weights(model, write_folder(tmp_path / "vars", arrays))
    assert report.unexpected == ["fc_0.b_0", "fc_0.w_0"]
    assert report.missing == (["embedding.weight", "embedding.bias"] if embedding_size else [])


def test_class_layer_is_transposed(resnet18, tmp_path):
    arrays = paddle_arrays(resnet18)
    arrays["fc_0.w_0"] = np.arange(512 * 1000, dtype=np.float32).reshape(512, 1000)
    arrays["fc_0.b_0"] = np.arange(1000, dtype=np.float32)
    found = load_classifier(build_model("ResNet18"), write_folder(tmp_path / "vars", arrays))
    np.testing.assert_array_equal(found.weight, arrays["fc_0.w_0"].T)
    np.testing.assert_array_equal(found.bias, arrays["fc_0.b_0"])


def test_layer_before_a_class_layer_is_the_embedding(resnet18, tmp_path):
    arrays = paddle_arrays(resnet18) | {"fc_1.w_0": np.zeros((8, 5), np.float32)}
    path = tmp_path / "w.pdparams"
    path.write_bytes(pickle.dumps(arrays, protocol=2))
    report = load_weights(build_model("ResNet18", 8), path)
    assert (report.missing, report.unexpected) == ([], ["fc_1.w_0"])
    with pytest.raises(ValueError, match="holds an embedding layer of size 8"):
        load_weights(build_model("ResNet18", 16), path)


def test_packed_dimensions(tmp_path, resnet18):
    arrays = paddle_arrays(resnet18)
    folder = write_folder(tmp_path / "vars", arrays)
    (folder / "conv1_weights").write_bytes(variable(arrays["conv1_weights"], packed=True))
    model = build_model("ResNet18", 8)
    load_weights(model, folder)
    assert torch.equal(model.backbone.conv1.weight, resnet18.backbone.conv1.weight)


@pytest.mark.parametrize("damage", ["short", "long", "empty", "header"])
def test_damaged_variable(damage, resnet18, tmp_path):
    folder = write_folder(tmp_path / "vars", paddle_arrays(resnet18))
    content = (folder / "conv1_weights").read_bytes()
    damaged = {"short": content[:-4], "long": content + b"\0", "empty": b"", "header": content[:17]}
    (folder / "conv1_weights").write_bytes(damaged[damage])
    with pytest.raises(ValueError, match="conv1_weights: truncated") as caught:
        load_weights(build_model("ResNet18", 8), folder)
    assert "\n" not in str(caught.value)


def test_archive_with_two_checkpoints(resnet18, tmp_path):
    content = variable(resnet18.backbone.conv1.weight.detach().numpy())
    with tarfile.open(tmp_path / "w.tar", "w") as archive:
        for folder in ("1000", "2000"):
            member = tarfile.TarInfo(f"{folder}/conv1_weights")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    with pytest.raises(ValueError, match="conv1_weights twice"):
        load_weights(build_model("ResNet18"), tmp_path / "w.tar")


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tar.bz2", "tar.xz"])
def test_truncated_archive(suffix, resnet18, tmp_path):
    (tmp_path / "conv1_weights").write_bytes(variable(resnet18.backbone.conv1.weight.detach()))
    path = tmp_path / f"w.{suffix}"
    with tarfile.open(path, f"w:{suffix[4:]}") as archive:
        archive.add(tmp_path / "conv1_weights", "vars/conv1_weights")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match="fetch it again|copy the checkpoint again"):
        load_weights(build_model("ResNet18", 8), path)


def test_folder_without_variables(tmp_path):
    (tmp_path / "last.pt").write_bytes(b"x")
    with pytest.raises(ValueError, match="holds no Paddle variables"):
        load_weights(build_model("ResNet18"), tmp_path)


def test_other_models_are_refused(resnet18, tmp_path):
    folder = write_folder(tmp_path / "vars", paddle_arrays(resnet18))
    with pytest.raises(ValueError, match="not supported for SE_ResNeXt50_32x4d"):
        load_weights(build_model("SE_ResNeXt50_32x4d"), folder)
    weights = np.zeros((64, 64, 1, 1), np.float32)
    (folder / "res2a_branch1_weights").write_bytes(variable(weights))
    with pytest.raises(ValueError, match="first shortcut"):
        load_weights(build_model("ResNet18", 8), folder)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("suffix", ["pdparams", "pt"])
def test_pickle_with_code_does_not_run(protocol, suffix, tmp_path):
    trap = tmp_path / "trap"
    path = tmp_path / f"weights.{suffix}"
    path.write_bytes(pickle.dumps({"conv1_weights": Malicious(trap)}, protocol=protocol))
    with pytest.raises(ValueError, match="refused|not a weights file") as caught:
        load_weights(build_model("ResNet18"), path)
    assert not trap.exists()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("array", [np.array([{}, 1], object), np.array(["a"]), np.zeros(1, "f4,O")])
def test_pickle_with_other_arrays(array, tmp_path):
    path = tmp_path / "weights.pdparams"
    path.write_bytes(pickle.dumps({"conv1_weights": array}))
    with pytest.raises(ValueError, match="holds no arrays"):
        load_weights(build_model("ResNet18"), path)


def test_truncated_pickle(resnet18, tmp_path):
    path = tmp_path / "weights.pdparams"
    path.write_bytes(pickle.dumps(paddle_arrays(resnet18))[:-1000])
    with pytest.raises(ValueError, match="not readable as a pickle of arrays"):
        load_weights(build_model("ResNet18", 8), path)


def test_pickle_without_arrays(tmp_path):
    path = tmp_path / "weights.pdparams"
    path.write_bytes(pickle.dumps({"epoch": 3}))
    with pytest.raises(ValueError, match="holds no arrays"):
        load_weights(build_model("ResNet18"), path)
