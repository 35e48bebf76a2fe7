"""Tests of models.torchscript: tensors are read, programs are not run."""

import pickle
import zipfile

import pytest
import torch
from torch import nn

from metric_learning.models import build_model, load_weights
from metric_learning.models.weights.files import read_weights
from metric_learning.models.weights.torchscript import is_torchscript

pytestmark = pytest.mark.filterwarnings("ignore")  # that TorchScript is deprecated


class Parts(nn.Module):
    """Tensors of several types and kinds."""

    sizes: list[int]

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        self.scales = nn.Parameter(torch.randn(2, 4).half().T)
        self.shared = self.layers[0].weight
        self.sizes = [1, 2]
        self.register_buffer("count", torch.tensor(7))
        self.register_buffer("nothing", torch.empty(0, 3))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.layers(rows)


@pytest.fixture
def archive(tmp_path):
    """A saved module, and its file."""
    module = Parts()
    torch.jit.script(module).save(tmp_path / "parts.pt")
    return module, tmp_path / "parts.pt"


def write(path, entries):
    with zipfile.ZipFile(path, "w") as file:
        for name, data in entries.items():
            file.writestr(f"parts/{name}", data)


def test_the_tensors_are_those_of_the_module(archive):
    module, file = archive
    weights = read_weights(file)
    expected = module.state_dict()
    assert weights.source == "torchscript" and weights.metadata is None
    assert set(weights.tensors) == set(expected)
    for name, tensor in expected.items():
        assert weights.tensors[name].dtype == tensor.dtype
        assert torch.equal(weights.tensors[name], tensor)


def test_a_traced_network_gives_its_weights_back(tmp_path):
    source = build_model("ResNet18", 4).eval()
    traced = torch.jit.trace(source, torch.zeros(1, 3, 32, 32), check_trace=False)
    traced.save(tmp_path / "net.torchscript")
    other = build_model("ResNet18", 4).eval()
    assert not load_weights(other, tmp_path / "net.torchscript").missing
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(other(images), source(images))


def test_a_state_dict_is_no_archive(tmp_path):
    torch.save({"weight": torch.ones(1)}, tmp_path / "plain.pt")
    assert not is_torchscript(tmp_path / "plain.pt")
    assert list(read_weights(tmp_path / "plain.pt").tensors) == ["weight"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"cos\nsystem\n(X\x04\x00\x00\x00exittR.", "os.system, which is refused as code"),
        (pickle.dumps({"weight": 1}), "it holds no module"),
        (b"\x80\x02c__torch__\nParts\n)\x81}", "not readable as TorchScript"),
        (b"", "not readable as TorchScript"),
    ],
)
def test_code_and_damage_are_one_line(data, words, tmp_path):
    write(tmp_path / "bad.pt", {"data.pkl": data, "constants.pkl": b"."})
    with pytest.raises(ValueError, match=words) as caught:
        read_weights(tmp_path / "bad.pt")
    assert "\n" not in str(caught.value)


def test_a_storage_that_is_cut_short_is_refused(archive, tmp_path):
    _, file = archive
    with zipfile.ZipFile(file) as whole:
        entries = {name.partition("/")[2]: whole.read(name) for name in whole.namelist()}
    largest = max(
        (name for name in entries if name.startswith("data/")), key=lambda n: len(entries[n])
    )
    entries[largest] = entries[largest][:8]
    write(tmp_path / "cut.pt", entries)
    with pytest.raises(ValueError, match="not readable as TorchScript"):
        read_weights(tmp_path / "cut.pt")
