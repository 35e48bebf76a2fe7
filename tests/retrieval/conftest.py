"""What several tests of retrieval share."""

import pytest
import torch

from metric_learning.retrieval.counting import choose

DEVICES = ["cpu", "torch", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(params=DEVICES)
def device(request, monkeypatch):
    """Each way of counting: compiled, by torch on the CPU, and on a GPU where there is one."""
    if request.param == "torch":
        monkeypatch.setattr(choose, "CpuCounter", None)
    return "cuda" if request.param == "cuda" else "cpu"
