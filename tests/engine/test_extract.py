"""Extraction of embeddings: order, precision and the model's mode."""

import pytest
import torch
from metric_learning.engine.embed.extract import extract
from torch import nn

from metric_learning.reader.batches.loader import Batch
from metric_learning.reader.preprocessing import Preprocessing

CPU = torch.device("cpu")
AS_IT_IS = Preprocessing("reference", 2, (0, 0, 0), (1 / 255,) * 3)


def batches(sizes):
    start = 0
    for size in sizes:
        numbers = torch.arange(start, start + size, dtype=torch.uint8)
        images = numbers.view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
        yield Batch(images, torch.zeros(size, dtype=torch.int64), {})
        start += size


class Mean(nn.Module):
    def forward(self, images):
        assert not self.training and not torch.is_grad_enabled()
        return images.mean((2, 3))


def test_every_image_once_and_in_order():
    model = Mean()
    embeddings = extract(model, batches([3, 3, 1]), AS_IT_IS, CPU)
    assert embeddings.dtype == "float32"
    assert embeddings[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6]


def test_every_module_gets_its_mode_back():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten()).train()
    model[0].eval()
    extract(model, batches([2]), AS_IT_IS, CPU)
    assert model.training and not model[0].training


def test_log_lines_have_the_reference_s_form():
    lines = []
    extract(Mean(), batches([1] * 5), AS_IT_IS, CPU, log=lines.append, log_every=2)
    assert [line.split(",")[0] for line in lines] == ["testbatch 2", "testbatch 4"]
    assert all(line.endswith(" sec") for line in lines)


def test_no_image_is_an_error():
    with pytest.raises(ValueError, match="no image"):
        extract(Mean(), [], AS_IT_IS, CPU)
