"""Which device a run computes on, and what becomes of its memory."""

import os
import platform
import subprocess
import sys

import pytest
import torch

from metric_learning.engine.parallel import devices
from metric_learning.engine.parallel.devices import (
    casting,
    choose_amp,
    choose_device,
    embedding_batch,
    keep_freed_memory,
    prepare_steps,
    reading_workers,
)
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


def gpu(monkeypatch, **answers):
    """Pretend that there are two GPUs; return the devices that are made the current one."""
    chosen = []
    answers = {"is_available": lambda: True, "device_count": lambda: 2, **answers}
    for name, answer in {**answers, "set_device": chosen.append}.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    return chosen


def test_the_chosen_gpu_becomes_the_current_one_and_no_other(choose, monkeypatch):
    chosen = gpu(monkeypatch)
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *given, device: zeros(*given))
    assert choose("cuda:1")[0] == torch.device("cuda:1")
    assert choose(rank=1, size=2, local_rank=1)[0] == torch.device("cuda:1")
    assert choose("cuda", rank=1, size=2, local_rank=1)[0] == torch.device("cuda:1")
    assert chosen == [torch.device("cuda:1")] * 3
    choose("cpu")
    choose("cpu:0")
    assert len(chosen) == 3


def test_devices_without_float64_are_refused(choose):
    with pytest.raises(ValueError, match="--device=mps is not supported: expected cpu or cuda"):
        choose("mps")


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_half_precision_is_chosen_where_the_gpu_computes_in_it(monkeypatch, has_bfloat16):
    """What a GPU before Ampere can only emulate would be slower than float32."""
    gpu(monkeypatch, is_bf16_supported=lambda including_emulation=True: including_emulation)
    if has_bfloat16:
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    lines = []
    monkeypatch.setattr(devices, "log", lines.append)
    chosen = choose_amp("auto", torch.device("cuda"), World())
    assert chosen == (torch.bfloat16 if has_bfloat16 else None)
    assert bool(lines) != has_bfloat16 and all("--amp=float16" in line for line in lines)
    assert choose_amp("tf32", torch.device("cuda"), World()) is None
    with pytest.raises(ValueError, match="--amp=tf32 is a way in which GPUs compute"):
        choose_amp("tf32", torch.device("cpu"), World())


@pytest.mark.parametrize("is_tf32", [False, True])
def test_float32_keeps_its_bits_unless_asked(is_tf32):
    def switches():
        places = (torch.backends.cuda.matmul, getattr(torch.backends.cudnn, "conv", None))
        if hasattr(places[1], "fp32_precision"):
            return [place.fp32_precision for place in places]
        is_allowed = torch.backends.cudnn.allow_tf32  # before torch 2.9
        precision = {"highest": "ieee", "high": "tf32"}[torch.get_float32_matmul_precision()]
        return [precision, "tf32" if is_allowed else "ieee"]

    before = switches()
    with casting(torch.device("cpu"), None, is_tf32):
        assert switches() == ["tf32" if is_tf32 else "ieee"] * 2
    assert switches() == before


def test_a_gpu_is_read_for_by_the_cores_of_its_process(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(24), raising=False)
    assert reading_workers(None, torch.device("cpu")) == 2
    assert reading_workers(0, torch.device("cuda")) == 0
    assert reading_workers(None, torch.device("cuda")) == 16

    # Two batches of 4096 crops of 224 px are 1.2 GB.
    crops = 3 * 224 * 224
    assert reading_workers(None, torch.device("cuda"), 2 * 256 * crops) == 16
    assert reading_workers(None, torch.device("cuda"), 2 * 4096 * crops) == 6
    assert reading_workers(12, torch.device("cuda"), 2 * 4096 * crops) == 12
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert reading_workers(None, torch.device("cuda")) == 6
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "24")
    assert reading_workers(None, torch.device("cuda")) == 2


def test_a_gpu_embeds_more_images_at_once_unless_told_otherwise():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert embedding_batch(10, False, cpu) == embedding_batch(10, True, cuda) == 10
    assert embedding_batch(10, False, cuda) == 64
    assert embedding_batch(100, False, cuda) == 100


@pytest.mark.parametrize(
    ("device", "deterministic", "is_tried"),
    [("cpu", None, False), ("cuda", None, True), ("cuda", "cudnn", False), ("cuda", "all", False)],
)
def test_convolutions_are_tried_in_training_on_a_gpu(monkeypatch, device, deterministic, is_tried):
    monkeypatch.setattr(devices, "keep_freed_memory", lambda: device == "cpu")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", deterministic == "cudnn")
    monkeypatch.setattr(
        torch, "are_deterministic_algorithms_enabled", lambda: deterministic == "all"
    )
    prepare_steps(torch.device(device))
    assert torch.backends.cudnn.benchmark == is_tried


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
