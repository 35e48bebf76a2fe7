"""Which device a run computes on, and what becomes of its memory."""

import platform
import subprocess
import sys

import pytest
import torch

from metric_learning.engine.parallel import devices
from metric_learning.engine.parallel.devices import choose_device, keep_freed_memory
from metric_learning.engine.parallel.world import World


@pytest.fixture
def choose(monkeypatch):
    """Choose a device; returns it and what was logged."""

    def choose_and_log(device="auto", use_gpu=True, **world):
        lines = []
        monkeypatch.setattr(devices, "log", lines.append)
        return choose_device(device, use_gpu, World(**world)), lines

    return choose_and_log


def test_the_cpu_is_taken_where_no_gpu_is_wanted_or_there_is_none(choose, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose(use_gpu=False) == (torch.device("cpu"), [])
    assert choose("cpu", size=2) == (torch.device("cpu"), [])
    device, lines = choose()
    assert device == torch.device("cpu") and "finds no GPU here" in lines[0]


def test_a_device_that_is_not_there_is_refused(choose):
    with pytest.raises(ValueError, match="--device=cuda:99 cannot be used here"):
        choose("cuda:99")


def test_one_device_for_several_processes_is_refused(choose):
    assert choose("cpu:0")[0] == torch.device("cpu:0")
    with pytest.raises(ValueError, match="--device=cpu:0 is one device for 2 processes"):
        choose("cpu:0", rank=1, size=2)


def test_more_processes_than_gpus_are_refused(choose, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="expected a GPU per process, found 1 on this node"):
        choose(rank=1, size=2, local_rank=1)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_freed_memory_is_used_again_without_a_page_fault():
    program = """
import resource, torch
import metric_learning.engine.train.start  # all that a training imports before it asks
from metric_learning.engine.parallel.devices import keep_freed_memory
assert keep_freed_memory()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for step in range(6):
    before = faults()
    torch.ones(2**25)
    print(faults() - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    faults = [int(line) for line in done.stdout.split()]
    assert faults[0] > 1000 and max(faults[3:]) < 100, done


def test_elsewhere_memory_is_left_alone(monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert not keep_freed_memory()
