"""Which way of counting is used: compiled on the CPU, else by torch."""

from __future__ import annotations

import warnings

import numpy as np
import torch

from metric_learning.retrieval.counting.by_torch import TorchCounter
from metric_learning.retrieval.counting.thresholds import Counter

try:
    from metric_learning.retrieval.counting.cpu.compiled import CpuCounter
except (ImportError, RuntimeError) as error:  # no numba, or no folder for what it compiles
    CpuCounter = None  # type: ignore[assignment, misc]
    warnings.warn(f"ranks are counted by torch, which takes longer: {error}", stacklevel=2)


def is_compiled(device: torch.device) -> bool:
    """Whether the compiled loops serve a device."""
    return device.type == "cpu" and CpuCounter is not None


def choose_counter(
    queries: np.ndarray, gallery: np.ndarray | None, device: str | torch.device
) -> Counter:
    """Return the counter of queries (Q, D), and a gallery (G, D) if it is another, for a device."""
    device = torch.device(device)
    if is_compiled(device):
        return CpuCounter(queries, gallery)

    def move(rows: np.ndarray) -> torch.Tensor:  # a memory map, which is not writable, is copied
        return torch.from_numpy(np.require(rows, requirements="W")).to(device)

    return TorchCounter(move(queries), None if gallery is None else move(gallery))
