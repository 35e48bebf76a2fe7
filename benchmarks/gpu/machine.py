"""The machine: versions and switches, its precision, its ceilings, and the tests that need it."""

from __future__ import annotations

import subprocess
import sys
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
import torch.nn.functional as F

from benchmarks.common import ROOT, machine, versions
from benchmarks.gpu.section import Section, relative
from metric_learning.engine.parallel.devices import choose_amp, place
from metric_learning.engine.parallel.world import World
from metric_learning.models import build_model
from metric_learning.retrieval.counting.full_precision import full_precision, tf32

CARD = "--query-gpu=name,driver_version,clocks.sm,clocks.mem,power.limit"


def env(section: Section) -> None:
    """Note versions, the card and PyTorch's switches."""
    section.note(
        commit=printed("git", "log", "-1", "--format=%h %s"),
        versions=versions(),
        machine=machine(),
        cudnn_allow_tf32=torch.backends.cudnn.allow_tf32,
        matmul_precision=torch.get_float32_matmul_precision(),
        amp_auto=str(choose_amp("auto", section.device, World())),
    )

    if section.is_cuda:
        section.note(
            nvidia_smi=printed("nvidia-smi", CARD, "--format=csv,noheader"),
            capability=torch.cuda.get_device_capability(),
            libraries=[
                torch.version.cuda,
                torch.backends.cudnn.version(),
                torch.cuda.nccl.version(),
            ],
            bfloat16_in_hardware=torch.cuda.is_bf16_supported(including_emulation=False),
        )


def printed(*command: str) -> str:
    """Run a command in the checkout; return what it prints."""
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    print(done.stderr)
    return done.stdout.strip()


def precision(section: Section) -> None:
    """Compare features with those in float64 on the CPU: with TF32, without, in bfloat16."""
    name, size, count = section.size(("ResNet50", 224, 16), ("test_resnet", 32, 4))
    torch.manual_seed(0)
    model = build_model(name, image_size=size).eval()
    images = torch.randn(count, 3, size, size)
    ways: dict[str, AbstractContextManager] = {
        "as_it_is": nullcontext(),
        "tf32": tf32(),
        "ieee": full_precision(),
        "bfloat16": torch.autocast(section.device.type, dtype=torch.bfloat16),
    }

    with torch.inference_mode():
        exact = model.double()(images.double())
        section.note(cpu_float32=relative(model.float()(images), exact))
        place(model, section.device)
        moved = images.to(section.device, memory_format=torch.channels_last)
        for way, context in ways.items():
            with context:
                found = model(moved).double().cpu()
            largest = float(1 - F.cosine_similarity(found, exact).min())
            gaps = {"relative": relative(found, exact), "largest 1 - cosine": largest}
            section.note(**{way: gaps})


def tests(section: Section) -> None:
    """Run the tests of the project that are about GPUs; those without their packages are errors."""
    found = sorted((ROOT / "tests").rglob(section.size("test_*.py", "test_devices.py")))
    files = [str(file) for file in found if "cuda" in file.read_text()]
    options = ["--no-header", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
    options += section.size(["-k", "cuda or gpu or devices"], [])
    text = printed(sys.executable, "-m", "pytest", *options, *files)

    lines = text.splitlines() or [""]
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    section.note(summary=lines[-1], failed=failed)
    print(text)


def ceilings(section: Section) -> None:
    """Measure matrix products, the device's memory, and copies to it."""
    sizes = {"bfloat16": 8192, "float32": 8192, "float64": 4096}
    for name, size in section.size(sizes, {"float32": 256, "float64": 256}).items():
        a = torch.randn(size, size, device=section.device).to(getattr(torch, name))
        seconds = section.seconds_of(partial(torch.mm, a, a), 5, warm_up=2)
        section.note(**{f"{name} TFLOP/s": 2 * size**3 / 1e12 / seconds})

    size = section.size(2**30, 2**20)
    target = torch.empty(size, dtype=torch.uint8, device=section.device)
    host = torch.empty(size, dtype=torch.uint8, pin_memory=section.is_cuda)
    for name, source in {"copy": target.clone(), "copy from the host": host}.items():
        seconds = section.seconds_of(partial(target.copy_, source), 5, warm_up=2)
        section.note(**{f"{name} GB/s": size / 1e9 / seconds})
