"""The machine: versions and switches, its precision, its ceilings, and the tests that need it."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import ROOT, machine, versions
from benchmarks.gpu.section import Section, convolutions_in, relative
from metric_learning.engine.parallel.devices import choose_amp, place
from metric_learning.models import build_model

DISTRIBUTIONS = (
    *("torch", "torchvision", "timm", "numpy", "numba", "opencv-python-headless", "triton"),
    *("faiss-gpu", "faiss-cpu", "pytorch-metric-learning"),
)


def env(section: Section) -> None:
    """Note versions, the card and PyTorch's switches."""
    command = ["git", "log", "-1", "--format=%h %s"]
    commit = subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout.strip()
    section.note(commit=commit, versions=versions(*DISTRIBUTIONS), **machine())
    section.note(
        cudnn_allow_tf32=torch.backends.cudnn.allow_tf32,
        cudnn_benchmark=torch.backends.cudnn.benchmark,
        matmul_precision=torch.get_float32_matmul_precision(),
        amp_auto=str(choose_amp("auto", section.device)),
    )
    if section.is_cuda:
        section.attempt("card", card)


def card() -> dict[str, Any]:
    """Return what the card is."""
    asked = "--query-gpu=name,driver_version,clocks.sm,clocks.mem,power.limit"
    command = ["nvidia-smi", asked, "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    return {
        "nvidia_smi": done.stdout.strip(),
        "capability": torch.cuda.get_device_capability(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "nccl": torch.cuda.nccl.version(),
        "bfloat16": torch.cuda.is_bf16_supported(),
        "bfloat16 in hardware": torch.cuda.is_bf16_supported(including_emulation=False),
    }


def precision(section: Section) -> None:
    """Compare features with those in float64 on the CPU: with TF32, without, in bfloat16."""
    name, size, count = section.size(("ResNet50", 224, 16), ("test_resnet", 32, 4))
    torch.manual_seed(0)
    model = build_model(name, image_size=size).eval()
    images = torch.randn(count, 3, size, size)
    with torch.inference_mode():
        exact = model.double()(images.double())
        own = model.float()(images)
        section.note(cpu_float32=relative(own, exact))

        place(model, section.device)
        moved = images.to(section.device, memory_format=torch.channels_last)
        section.note(as_it_is=gaps(model(moved), exact))
        for kind in ("tf32", "ieee"):
            with convolutions_in(kind):
                section.note(**{kind: gaps(model(moved), exact)})
        with torch.autocast(section.device.type, dtype=torch.bfloat16):
            section.note(bfloat16=gaps(model(moved), exact))


def gaps(found: Tensor, exact: Tensor) -> dict[str, float]:
    """Return how far embeddings (B, D) are from exact ones."""
    cosines = F.cosine_similarity(found.double().cpu(), exact)
    return {"relative": relative(found, exact), "largest 1 - cosine": float(1 - cosines.min())}


def tests(section: Section) -> None:
    """Run the tests of the project that are about GPUs; those without their packages are errors."""
    found = sorted((ROOT / "tests").rglob(section.size("test_*.py", "test_devices.py")))
    files = [str(file) for file in found if "cuda" in file.read_text()]
    options = section.size(["-k", "cuda or gpu or devices"], [])
    command = [sys.executable, "-m", "pytest", "--no-header", "-p", "no:cacheprovider", *options]
    command += ["--continue-on-collection-errors", *files]
    limit = max(10, section.left())
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit, cwd=ROOT)

    print(done.stdout[-6000:], done.stderr[-2000:])
    lines = done.stdout.strip().splitlines() or [""]
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    section.note(exit=done.returncode, summary=lines[-1], failed=failed)


def ceilings(section: Section) -> None:
    """Measure matrix products, the device's memory, and copies to it."""
    for name, size in section.size(
        {"bfloat16": 8192, "float32": 8192, "float64": 4096}, {"float32": 256, "float64": 256}
    ).items():
        dtype = getattr(torch, name)
        a, b = (torch.randn(size, size, device=section.device).to(dtype) for _ in range(2))
        seconds = section.seconds_of(partial(torch.mm, a, b), 5, warm_up=2)
        section.note(**{f"{name} TFLOP/s": 2 * size**3 / 1e12 / seconds})

    size = section.size(2**30, 2**20)
    source, target = (torch.empty(size, dtype=torch.uint8, device=section.device) for _ in "st")
    seconds = section.seconds_of(partial(target.copy_, source), 10, warm_up=2)
    section.note(copy_gb_per_s=2 * size / 1e9 / seconds)
    if section.is_cuda:
        pinned, part = torch.empty(size // 4, dtype=torch.uint8).pin_memory(), target[: size // 4]
        seconds = section.seconds_of(partial(part.copy_, pinned), 5, warm_up=2)
        section.note(h2d_gb_per_s=size / 4e9 / seconds)
