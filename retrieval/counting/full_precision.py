"""float32 in float32: convolutions and products on a GPU that could leave bits away."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch


def full_precision() -> AbstractContextManager[None]:
    """Let torch compute float32 in float32 in the body, not in TF32 or bfloat16."""
    return _float32_as("ieee")


def tf32() -> AbstractContextManager[None]:
    """Let torch compute float32 on a GPU with the 10 bits of TF32's mantissa in the body."""
    return _float32_as("tf32")


@contextmanager
def _float32_as(precision: str) -> Iterator[None]:
    backends = torch.backends
    places = [backends.cuda.matmul, getattr(backends.cudnn, "conv", None)]
    if precision == "ieee":
        places += [getattr(backends.mkldnn, name, None) for name in ("matmul", "conv")]
    switches: list[Any] = [place for place in places if hasattr(place, "fp32_precision")]
    if not switches:
        with _float32_before_29(precision):
            yield
        return

    values = [switch.fp32_precision for switch in switches]
    for switch in switches:
        switch.fp32_precision = precision
    try:
        yield
    finally:
        for switch, value in zip(switches, values, strict=True):
            switch.fp32_precision = value


@contextmanager
def _float32_before_29(precision: str) -> Iterator[None]:
    """As `_float32_as`, by the switches that torch had before 2.9."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest" if precision == "ieee" else "high")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
