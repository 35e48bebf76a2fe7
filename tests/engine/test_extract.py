"""Extraction of embeddings: order, precision and the model's mode."""

import pytest
import torch
from torch import nn

from metric_learning.engine.embed.extract import extract

CPU = torch.device("cpu")


def batches(sizes):
    start = 0
    for size in sizes:
        images = torch.arange(start, start + size).float().view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
        yield images, torch.zeros(size, dtype=torch.int64)
        start += size


class Mean(nn.Module):
    def forward(self, images):
        assert not self.training and not torch.is_grad_enabled()
        return images.mean((2, 3))


def test_every_image_once_and_in_order():
    model = Mean()
    embeddings = extract(model, batches([3, 3, 1]), CPU)
    assert embeddings.dtype == "float32"
    assert embeddings[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6]


def test_every_module_gets_its_mode_back():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten()).train()
    model[0].eval()
    extract(model, batches([2]), CPU)
    assert model.training and not model[0].training


def test_log_lines_have_the_reference_s_form():
    lines = []
    extract(Mean(), batches([1] * 5), CPU, log=lines.append, log_every=2)
    assert [line.split(",")[0] for line in lines] == ["testbatch 2", "testbatch 4"]
    assert all(line.endswith(" sec") for line in lines)


def test_no_image_is_an_error():
    with pytest.raises(ValueError, match="no image"):
        extract(Mean(), [], CPU)
