"""Embeddings of an image set: order, precision, the model's mode, log lines."""

import re

import numpy as np
import pytest
import torch
from torch import nn

from metric_learning.engine.embed.embedding import embed_images
from metric_learning.engine.options.parts import MachineOptions
from metric_learning.engine.parallel.world import World
from metric_learning.reader import ImageSet
from metric_learning.reader.preprocessing import Preprocessing

CPU = MachineOptions(World(), torch.device("cpu"), None, seed=0, num_workers=0)
PLAIN = Preprocessing("standard", 2, mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255))


def image_set(num_images):
    """Grey images whose value is their number."""
    images = np.arange(num_images, dtype=np.uint8)[:, None, None, None].repeat(3, 3)
    images = images.repeat(2, 1).repeat(2, 2)
    everything = np.ones(num_images, bool)
    labels, paths = np.zeros(num_images, np.int64), [str(n) for n in range(num_images)]
    return ImageSet("grey", "test", paths, labels, {0: "grey"}, everything, everything, images)


class Mean(nn.Module):
    embedding_size = 3

    def forward(self, images):
        assert not self.training and not torch.is_grad_enabled()
        return images.mean((2, 3))


def test_every_image_once_and_in_order():
    embeddings = embed_images(Mean(), image_set(7), PLAIN, CPU, batch_size=3)
    assert embeddings.dtype == "float32" and embeddings.shape == (7, 3)
    assert embeddings[:, 0] == pytest.approx(range(7))


def test_every_module_gets_its_mode_back():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten()).train()
    model.embedding_size = 12
    model[0].eval()
    embed_images(model, image_set(2), PLAIN, CPU, batch_size=2)
    assert model.training and not model[0].training


def test_log_lines_have_the_reference_s_form():
    lines = []
    embed_images(Mean(), image_set(5), PLAIN, CPU, batch_size=1, log=lines.append, log_every=2)
    assert [line.split(",")[0] for line in lines] == ["testbatch 2", "testbatch 4"]
    assert all(
        re.fullmatch(r"testbatch \d, time \d\.\d\d sec, eta 0:00:00", line) for line in lines
    )


def test_no_image_is_an_error():
    with pytest.raises(ValueError, match="no image"):
        embed_images(Mean(), image_set(0), PLAIN, CPU, batch_size=2)


def test_an_image_whose_embedding_is_not_finite_is_named():
    class Diverged(Mean):
        def forward(self, images):
            return torch.where(images.mean((2, 3)) > 3.5, torch.nan, 1.0)

    with pytest.raises(ValueError, match="the embedding of 4 holds NaN or infinity"):
        embed_images(Diverged(), image_set(6), PLAIN, CPU, batch_size=2)
