"""Which device a run computes on."""

from argparse import Namespace

import pytest
import torch

from engine.devices import choose_device
from engine.distributed import World


def choose(device="auto", use_gpu=True, **world):
    lines = []
    chosen = choose_device(Namespace(device=device, use_gpu=use_gpu), lines.append, World(**world))
    return chosen, lines


def test_the_cpu_is_taken_where_no_gpu_is_wanted_or_there_is_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose(use_gpu=False) == (torch.device("cpu"), [])
    assert choose("cpu", size=2) == (torch.device("cpu"), [])
    device, lines = choose()
    assert device == torch.device("cpu") and "finds no GPU here" in lines[0]


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="--device=cuda:99 cannot be used here"):
        choose("cuda:99")


def test_one_device_for_several_processes_is_refused():
    assert choose("cpu:0")[0] == torch.device("cpu:0")
    with pytest.raises(ValueError, match="--device=cpu:0 is one device for 2 processes"):
        choose("cpu:0", rank=1, size=2)


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="expected a GPU per process, found 1 on this node"):
        choose(rank=1, size=2, local_rank=1)
