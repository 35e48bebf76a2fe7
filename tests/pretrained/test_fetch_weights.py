"""Tests of pretrained/fetch_weights.py, up to the point of the network."""

import hashlib
import subprocess
import sys
import urllib.request
from urllib.error import URLError

import pytest
import timm
import torch
import torchvision

from metric_learning.models import build_model, load_weights, read_metadata
from metric_learning.pretrained import fetch_weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A torchvision state dict, as it is published."""
    path = tmp_path_factory.mktemp("published") / "resnet18.v1.pth"
    torch.save(torchvision.models.resnet18().state_dict(), path)
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch_weights, "FOLDER", tmp_path / "pretrained")
    return tmp_path / "pretrained"


def failed(capsys, argv):
    """Run a command that fails; return its one line."""
    with pytest.raises(SystemExit) as stop:
        fetch_weights.main(argv)
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.fixture
def offer(weights, monkeypatch):
    """Let torchvision offer these weights under a name with this beginning of their sha256."""

    def set_url(prefix):
        class Published:
            url = f"https://download.pytorch.org/models/resnet18-{prefix}.pth"

        def download(urls, part):
            assert urls == [Published.url]
            part.write_bytes(weights.read_bytes())

        monkeypatch.setattr(fetch_weights, "download", download)
        weights_of = {"IMAGENET1K_V1": Published}
        monkeypatch.setattr(fetch_weights, "get_model_weights", lambda name: weights_of)

    return set_url


def test_fetch_of_torchvision_weights(weights, folder, offer, capsys):
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    offer(digest[:8])
    assert fetch_weights.main(["--model=ResNet18", f"--sha256={digest}"]) == 0
    output = folder / "ResNet18_imagenet.safetensors"
    assert f"wrote {output}" in capsys.readouterr().out
    assert read_metadata(output)["model"] == "ResNet18"
    model = build_model("ResNet18", pretrained_model=output)
    assert torch.equal(model.backbone.conv1.weight, torch.load(weights)["conv1.weight"])
    assert "sha256 is" in failed(capsys, ["--model=ResNet18", f"--sha256={'0' * 64}"])


def test_damaged_torchvision_weights(folder, offer, capsys):
    offer("f37072fd")
    assert "arrived damaged" in failed(capsys, ["--model=ResNet18"])
    assert not any(folder.glob("*"))


@pytest.mark.parametrize("error", [URLError("no route"), TimeoutError("timed out")])
def test_failed_download(error, folder, monkeypatch, capsys):
    asked = []

    def urlopen(request, timeout):
        asked.append(request.full_url)
        raise error

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    assert "check the network" in failed(capsys, ["--model=ResNet18"])
    assert [url.rpartition("/")[2] for url in asked] == ["resnet18-f37072fd.pth"]
    assert not any(folder.glob("*"))


def test_fetch_of_timm_weights(folder, monkeypatch, capsys):
    create_model = timm.create_model
    published = create_model("resnet14t", num_classes=0)

    def create(name, pretrained, num_classes):
        return published if pretrained else create_model(name, num_classes=num_classes)

    monkeypatch.setattr(timm, "create_model", create)
    assert fetch_weights.main(["--model=resnet14t"]) == 0
    monkeypatch.undo()
    model = build_model("resnet14t")
    load_weights(model, folder / "resnet14t_imagenet.safetensors")
    state = published.state_dict()
    assert all(torch.equal(state[k], v) for k, v in model.backbone.state_dict().items())


def test_fetch_of_timm_weights_without_a_network(folder, monkeypatch, capsys):
    create_model = timm.create_model

    def create(name, pretrained, num_classes):
        if pretrained:
            raise RuntimeError("no connection\nand more")
        return create_model(name, num_classes=num_classes)

    monkeypatch.setattr(timm, "create_model", create)
    assert "(no connection); check the network" in failed(capsys, ["--model=resnet14t"])


def test_convert(weights, folder, capsys):
    digest = hashlib.sha256(weights.read_bytes()).hexdigest().upper()
    argv = ["--model=ResNet18", f"--convert={weights}", f"--sha256={digest}"]
    assert fetch_weights.main(argv) == 0
    assert "left out: fc.weight, fc.bias" in capsys.readouterr().out
    metadata = read_metadata(folder / "resnet18.safetensors")
    assert metadata == {
        "model": "ResNet18",
        "embedding_size": 0,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "source": "resnet18.v1.pth",
    }


def test_convert_keeps_the_embedding_layer(folder, tmp_path):
    model = build_model("ResNet18", 4)
    torch.save({"model": model.state_dict()}, tmp_path / "last.pt")
    output = tmp_path / "new" / "bare.safetensors"
    argv = [f"--convert={tmp_path / 'last.pt'}", "--embedding_size=4", f"--output={output}"]
    assert fetch_weights.main(["--model=ResNet18", *argv]) == 0
    assert read_metadata(output)["embedding_size"] == 4
    loaded = build_model("ResNet18", 4, output)
    assert torch.equal(loaded.embedding.weight, model.embedding.weight)


def test_convert_keeps_the_options_of_a_trained_model(folder, tmp_path):
    options = {"pooling": "gem", "feature_norm": "layernorm"}
    model = build_model("test_resnet", **options)
    meta = {"model": "test_resnet", "embedding_size": 0, "flags": {}, **options}
    torch.save({"model": model.state_dict(), "meta": meta}, tmp_path / "last.pt")
    output = tmp_path / "bare.safetensors"
    argv = ["--model=test_resnet", f"--convert={tmp_path / 'last.pt'}", f"--output={output}"]
    assert fetch_weights.main(argv) == 0
    assert read_metadata(output).items() >= options.items()
    assert "last_stride" not in read_metadata(output)


def test_user_errors(weights, folder, tmp_path, capsys):
    convert = ["--model=ResNet18", f"--convert={weights}"]
    assert "expected --model=NAME" in failed(capsys, [])
    assert "unknown model ResNet19" in failed(capsys, ["--model=ResNet19"])
    assert "not found" in failed(capsys, ["--model=ResNet18", f"--convert={tmp_path / 'none'}"])
    assert "sha256 is" in failed(capsys, [*convert, "--sha256=00"])
    assert "has no embedding layer" in failed(capsys, [*convert, "--embedding_size=4"])
    assert "belongs to --convert" in failed(capsys, ["--model=ResNet18", "--embedding_size=4"])
    assert "another --output" in failed(capsys, [*convert, f"--output={weights}"])
    assert "is a folder" in failed(
        capsys, ["--model=ResNet18", f"--convert={tmp_path}", "--sha256=00"]
    )
    assert "for --convert" in failed(capsys, ["--model=resnet14t", "--sha256=00"])
    assert "no pretrained weights" in failed(capsys, ["--model=ese_vovnet19b_slim"])
    assert not any(folder.glob("*"))


def test_script_runs_from_any_folder(tmp_path):
    script = fetch_weights.__file__
    result = subprocess.run(
        [sys.executable, script, "--model=nothing"], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 2
    assert result.stderr.startswith("error: unknown model nothing")
    assert len(result.stderr.splitlines()) == 1
