"""Tests of models.weights and models.files."""

import json
import pickle
import shutil
import zipfile

import pytest
import safetensors.torch
import timm
import torch
import torchvision

from metric_learning.models import (
    WeightsReport,
    build_model,
    load_classifier,
    load_weights,
    read_metadata,
    save_weights,
)

METADATA = {"model": "ResNet18", "embedding_size": 8, "mean": [0.5, 0.5, 0.5], "flags": {"lr": 0.1}}


@pytest.fixture(scope="module")
def source():
    """A model whose every parameter and statistic differs from a new model's."""
    torch.manual_seed(1)
    model = build_model("ResNet18", 8)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.01, 0.05)
    return model


def same(model, other, prefix=""):
    state = other.state_dict()
    return all(
        torch.equal(tensor, state[key])
        for key, tensor in model.state_dict().items()
        if key.startswith(prefix) and not key.endswith("num_batches_tracked")
    )


def refused(model, path, match):
    """Check that loading fails with one line and leaves the model as it was."""
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=match) as caught:
        load_weights(model, path)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_bare_weights_round_trip(source, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_weights(source, path, METADATA)
    model = build_model("ResNet18", 8, path)
    assert same(model, source)
    assert read_metadata(path) == METADATA
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert set(safetensors.torch.load_file(path)) == set(source.state_dict())


def test_interrupted_save_keeps_the_old_file(source, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_weights(source, path, METADATA)
    with pytest.raises(TypeError):
        save_weights(source, path, {"model": object()})
    assert read_metadata(path) == METADATA
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("is_zip", [True, False])
def test_training_checkpoint(is_zip, source, tmp_path):
    path = tmp_path / "last.pt"
    content = {"model": source.state_dict(), "meta": METADATA, "step": 3, "optimizer": {"lr": [1]}}
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    model = build_model("ResNet18", 8)
    report = load_weights(model, path)
    assert report == WeightsReport(report.loaded, [], [], "torch")
    assert set(report.loaded) == set(model.state_dict())
    assert same(model, source)
    assert read_metadata(path) == METADATA
    path.unlink()
    assert same(model, source)


def test_no_metadata_in_files_of_others(source, tmp_path):
    torch.save(source.state_dict(), tmp_path / "plain.pth")
    safetensors.torch.save_file(
        source.state_dict(), tmp_path / "plain.safetensors", {"metadata": "not json"}
    )
    torch.save({"meta": {"epoch": 3}, "state_dict": source.state_dict()}, tmp_path / "other.pth")
    (tmp_path / "folder").mkdir()
    for name in ("plain.pth", "plain.safetensors", "other.pth", "folder"):
        assert read_metadata(tmp_path / name) is None


def test_torchvision_weights_give_identical_features(tmp_path):
    torch.manual_seed(0)
    network = torchvision.models.resnet18().eval()
    torch.save(network.state_dict(), tmp_path / "resnet18.pth")
    model = build_model("ResNet18").eval()
    report = load_weights(model, tmp_path / "resnet18.pth")
    assert (report.missing, report.unexpected) == ([], ["fc.weight", "fc.bias"])
    network.fc = torch.nn.Identity()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(images), network(images), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["mobilenetv2_100", "vit_tiny_patch16_224", "convnext_atto"])
def test_timm_weights(name, tmp_path):
    network = timm.create_model(name, pretrained=False)
    safetensors.torch.save_file(network.state_dict(), tmp_path / "weights.safetensors")
    model = build_model(name)
    report = load_weights(model, tmp_path / "weights.safetensors")
    assert report.missing == []
    assert len(report.unexpected) == 2
    state = network.state_dict()
    assert all(torch.equal(state[k], v) for k, v in model.backbone.state_dict().items())


def test_position_embedding_is_resampled(tmp_path):
    network = timm.create_model("vit_tiny_patch16_224", pretrained=False)
    torch.save(network.state_dict(), tmp_path / "vit.pth")
    model = build_model("vit_tiny_patch16_224", image_size=96)
    assert load_weights(model, tmp_path / "vit.pth").missing == []
    assert torch.equal(model.backbone.pos_embed[:, 0], network.pos_embed[:, 0])
    assert model.eval()(torch.zeros(1, 3, 96, 96)).isfinite().all()


def test_shared_mobilenet(shared):
    model = build_model("mobilenetv2_100")
    report = load_weights(model, shared / "weights/mobilenetv2_100_imagenet.safetensors")
    assert report.missing == report.unexpected == []  # a trunk of float weights alone
    assert len(report.loaded) == 312
    torch.manual_seed(0)
    with torch.no_grad():
        embeddings = model.eval()(torch.randn(4, 3, 128, 128))
    assert embeddings.shape == (4, 1280)
    assert embeddings.isfinite().all()
    assert embeddings.std(0).mean() > 1e-2


@pytest.mark.parametrize(
    "prefix", ["module.", "model.", "backbone.", "module.model.", "_orig_mod."]
)
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_prefixes_and_wrappers(prefix, wrapper, source, tmp_path):
    state = {
        f"{prefix}{key}": tensor
        for key, tensor in source.backbone.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    state[f"{prefix}fc.weight"] = torch.zeros(3, 512)
    torch.save({wrapper: state, "epoch": 4} if wrapper else state, tmp_path / "w.pth.tar")
    model = build_model("ResNet18")
    report = load_weights(model, tmp_path / "w.pth.tar")
    assert (report.missing, report.unexpected) == ([], [f"{prefix}fc.weight"])
    assert same(model, source, "backbone.")


def test_missing_embedding_layer_is_reported(source, tmp_path):
    torch.save(source.backbone.state_dict(), tmp_path / "w.pth")
    report = load_weights(build_model("ResNet18", 8), tmp_path / "w.pth")
    assert report.missing == ["embedding.weight", "embedding.bias"]


def test_half_precision_weights_become_float32(source, tmp_path):
    state = {k: v.half() if v.is_floating_point() else v for k, v in source.state_dict().items()}
    torch.save(state, tmp_path / "w.pth")
    model = build_model("ResNet18", 8)
    load_weights(model, tmp_path / "w.pth")
    assert model.embedding.weight.dtype == torch.float32
    torch.testing.assert_close(
        model.embedding.weight, source.embedding.weight, rtol=1e-3, atol=1e-4
    )


def test_embedding_layer_that_the_model_lacks(source, tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(source, path, METADATA)
    refused(build_model("ResNet18"), path, "the model has none; pass --embedding_size=8")
    refused(build_model("ResNet18", 16), path, "has one of 16; pass --embedding_size=8")


def test_weights_of_another_model(source, tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(source, path, METADATA)
    refused(
        build_model("ResNet34", 8), path, r"another model than ResNet34: \d+ missing .*\.\.\.\)"
    )
    refused(build_model("ResNet34", 8), path, "pass --model=ResNet18")
    deeper = build_model("ResNet34", 8)
    torch.save(deeper.state_dict(), tmp_path / "deeper.pth")
    refused(
        build_model("ResNet18", 8), tmp_path / "deeper.pth", r"unexpected \(.*\); check --model"
    )


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"backbone.conv1.weight": torch.zeros(64, 3, 3, 3)}, r"\(64, 3, 3, 3\) for \(64, 3, 7, 7"),
        ({"backbone.conv1.weight": torch.zeros(64, 3, 7, 7, dtype=torch.int8)}, "shape or type"),
        ({"backbone.layer1.9.weight": torch.zeros(1)}, r"1 unexpected \(backbone.layer1.9.weight"),
        ({"backbone.conv1.weight": None}, r"1 missing \(backbone.conv1.weight\)"),
        ({"embedding.bias": None}, r"1 missing \(embedding.bias\)"),
        ({"embedding.weight": None}, r"1 missing \(embedding.weight\)"),
    ],
)
def test_nothing_is_half_loaded(change, match, source, tmp_path):
    state = {**source.state_dict(), **change}
    state = {key: tensor for key, tensor in state.items() if tensor is not None}
    torch.save(state, tmp_path / "w.pth")
    refused(build_model("ResNet18", 8), tmp_path / "w.pth", match)


@pytest.mark.parametrize("name", ["none.pt", "none.safetensors", "folder/none"])
def test_missing_file(name, tmp_path):
    for function in (lambda path: load_weights(build_model("ResNet18"), path), read_metadata):
        with pytest.raises(FileNotFoundError, match="weights file not found: .*none"):
            function(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("w.pt", b"", "is empty"),
        ("w.pt", b"hello\n", "not a weights file but text"),
        ("w.pdparams", b"hello\n", "not a weights file but text"),
        ("w.safetensors", b"hello, I am no weights\n", "not a readable safetensors file"),
        ("w.safetensors", b"hi", "not a readable safetensors file"),
        ("w.pth", b"\x89PNG\r\n\x1a\n\0\0", "not a weights file but an image"),
        ("w.pth", b"<!DOCTYPE html><html>", "not a weights file but a web page"),
        ("w.pth", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        ("w.onnx", b"\x08\x08\x12\x07pytorch", "an ONNX network"),
        ("w.pth", b"\x07\0\x08", "unknown format"),
        ("conv1_weights", bytes(20), "one variable of a Paddle checkpoint"),
        ("w.tar.gz", b"\x1f\x8b" + bytes(20), "not a readable archive"),
        ("w.pt", b"PK\x03\x04" + bytes(40), "truncated, damaged or not a torch file"),
    ],
)
def test_not_a_weights_file(name, content, match, tmp_path):
    (tmp_path / name).write_bytes(content)
    refused(build_model("ResNet18"), tmp_path / name, match)


@pytest.mark.filterwarnings("ignore")  # that TorchScript is deprecated
def test_a_torchscript_archive_is_refused_unlike_what_torch_saves(source, tmp_path):
    traced = torch.jit.trace(source.eval(), torch.zeros(1, 3, 32, 32), check_trace=False)
    traced.save(tmp_path / "net.pt")
    refused(build_model("ResNet18", 8), tmp_path / "net.pt", "a TorchScript archive .*checkpoint")
    torch.save(traced.state_dict(), tmp_path / "state.pt")
    assert same(build_model("ResNet18", 8, tmp_path / "state.pt"), source)


@pytest.mark.parametrize("suffix", ["pt", "safetensors", "legacy.pt"])
def test_truncated_file(suffix, source, tmp_path):
    path = tmp_path / f"w.{suffix}"
    if suffix == "safetensors":
        save_weights(source, path, METADATA)
    else:
        torch.save(source.state_dict(), path, _use_new_zipfile_serialization=suffix == "pt")
    path.write_bytes(path.read_bytes()[:100_000])
    refused(build_model("ResNet18", 8), path, "copy or fetch it again")


def test_zip_that_torch_did_not_write(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        archive.writestr("a.txt", "text")
    refused(build_model("ResNet18"), tmp_path / "w.pt", "not a torch file")


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return shutil.copyfile, (__file__, str(self.path))


@pytest.mark.parametrize("is_zip", [True, False])
def test_torch_file_with_code_does_not_run(is_zip, source, tmp_path):
    trap, path = tmp_path / "trap", tmp_path / "w.pt"
    content = {**source.state_dict(), "extra": Malicious(trap)}
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    assert same(build_model("ResNet18", 8, path), source) and not trap.exists()
    torch.save({"model": Malicious(trap)}, path, _use_new_zipfile_serialization=is_zip)
    refused(build_model("ResNet18", 8), path, "shutil.copyfile.*can run code; save the model's sta")
    assert not trap.exists()


def test_a_module_of_another_kind_is_refused(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "w.pt")
    refused(build_model("ResNet18"), tmp_path / "w.pt", "another model than ResNet18: 100 missing")


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [torch.zeros(2)], torch.zeros(2)])
def test_torch_file_without_a_state_dict(content, tmp_path):
    torch.save(content, tmp_path / "w.pt")
    refused(build_model("ResNet18"), tmp_path / "w.pt", "holds no weights")


def test_foreign_pickle_and_json(tmp_path):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps([1, 2]))
    (tmp_path / "b.json").write_text(json.dumps({"a": 1}))
    refused(build_model("ResNet18"), tmp_path / "a.pkl", "holds no arrays")
    refused(build_model("ResNet18"), tmp_path / "b.json", "not a weights file but text")


def test_a_classifier_is_found_beside_the_backbone(tmp_path):
    torch.manual_seed(0)
    network = torchvision.models.resnet18(num_classes=7)
    model = build_model("ResNet18")
    wrapped = {f"module.{key}": value for key, value in network.half().state_dict().items()}
    torch.save({"state_dict": wrapped}, tmp_path / "wrapped.pth")
    found = load_classifier(model, tmp_path / "wrapped.pth")
    assert torch.equal(found.weight, network.fc.weight.float())
    assert torch.equal(found.bias, network.fc.bias.float())
    assert load_classifier(build_model("ResNet18", 8), tmp_path / "wrapped.pth") is None
    del wrapped["module.fc.bias"]
    torch.save(wrapped, tmp_path / "plain.pth")
    assert torch.equal(load_classifier(model, tmp_path / "plain.pth").bias, torch.zeros(7))
    torch.save({**wrapped, "head.weight": torch.ones(3, 512)}, tmp_path / "two.pth")
    with pytest.raises(ValueError, match="the class layers fc, head, expected one"):
        load_classifier(model, tmp_path / "two.pth")
    torch.save({k: v for k, v in wrapped.items() if "fc" not in k}, tmp_path / "none.pth")
    assert load_classifier(model, tmp_path / "none.pth") is None
