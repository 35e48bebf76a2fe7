"""Tests of engine.export: what happens where a network cannot be exported."""

import sys

import pytest
import torch
from torch import nn

import infer
from metric_learning.engine.embed import export

METADATA = {"model": "small", "image_shape": [3, 8, 8]}


class Small(nn.Module):
    """Embeddings (B, 4) of images (B, 3, 8, 8)."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(192, 4)

    def forward(self, images):
        return self.layer(images.flatten(1))


class Fixed(Small):
    """Works on the batch that it was recorded with alone."""

    def forward(self, images):
        return self.layer(images.reshape(int(images.shape[0]), 192))


class Unsteady(Small):
    """Draws other values at every call."""

    def forward(self, images):
        return super().forward(images) + torch.rand(())


class WithoutForm(Small):
    """Uses an operation that ONNX does not have."""

    def forward(self, images):
        return super().forward(torch.special.bessel_j0(images))


@pytest.fixture(autouse=True)
def _needs_onnx():
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")


def write(form, model, folder):
    export.write_and_compare(form, model.eval(), METADATA, folder / "file")


@pytest.mark.parametrize("form", ["onnx", "torchscript"])
def test_the_largest_difference_is_told(form, tmp_path, capsys):
    write(form, Small(), tmp_path)
    [line] = capsys.readouterr().out.splitlines()
    difference = float(line.partition("by at most ")[2].partition(" ")[0])
    assert 0 <= difference < 1e-5 and line.endswith("batches of 1 and 5 images")


@pytest.mark.parametrize("form", ["onnx", "torchscript"])
@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Fixed, "cannot be exported as FORM"),
        (Unsteady, "small as FORM gives embeddings that differ"),
    ],
)
def test_a_file_that_gives_other_embeddings_is_an_error(form, model, words, tmp_path):
    with pytest.raises(ValueError, match=words.replace("FORM", form)) as caught:
        write(form, model(), tmp_path)
    assert "\n" not in str(caught.value) and "choose another form" in str(caught.value)


def test_an_operation_that_onnx_lacks_is_named(tmp_path):
    with pytest.raises(ValueError, match="small cannot be exported as onnx .*bessel_j0") as caught:
        write("onnx", WithoutForm(), tmp_path)
    assert "\n" not in str(caught.value)


def test_a_model_above_the_limit_of_onnx_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "ONNX_LIMIT", 4 * (192 * 4 + 4) + 1)
    write("onnx", Small(), tmp_path)
    monkeypatch.setattr(export, "ONNX_LIMIT", 4 * (192 * 4 + 4))
    with pytest.raises(
        ValueError, match=r"its weights have 0\.0 GB, an ONNX file holds 2.*choose another form"
    ):
        write("onnx", Small(), tmp_path)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_differences_are_measured_by_the_largest_value(scale):
    def network(images):
        return images.flatten(1).clamp(-2, 2) * scale

    def other(images):
        return network(images) + 0.01 * scale

    difference = export.largest_difference(network, other, [3, 8, 8])
    assert difference == pytest.approx(0.005, rel=1e-3)
    assert export.largest_difference(network, network, [3, 8, 8]) == 0


def test_embeddings_of_zero_do_not_differ():
    def network(images):
        return images.flatten(1) * 0

    assert export.largest_difference(network, network, [3, 8, 8]) == 0


def test_without_onnxruntime_the_file_is_not_compared(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    write("onnx", Unsteady(), tmp_path)
    assert "not compared with torch: onnxruntime is not installed" in capsys.readouterr().out
    assert (tmp_path / "file").exists()


def test_without_onnx_it_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnx", None)
    flags = ["--pretrained_model=random", "--export=onnx", f"--output={tmp_path / 'a.onnx'}"]
    with pytest.raises(SystemExit) as stop:
        infer.main(flags)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    assert "pip install onnx onnxruntime" in error


def test_a_failed_export_leaves_the_old_file_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    file = tmp_path / "a.torchscript"
    old = '"preprocessing": "old", "fingerprint": "old"'  # as an earlier export describes itself
    file.write_text(old)
    flags = ["--pretrained_model=random", "--model=test_resnet", "--image_shape=3,32,32"]
    with pytest.raises(SystemExit):
        infer.main([*flags, "--export=torchscript", f"--output={file}"])
    assert file.read_text() == old and list(tmp_path.iterdir()) == [file]
