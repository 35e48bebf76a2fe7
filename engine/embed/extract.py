"""Embeddings of a whole data set, in data-set order."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sized

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from metric_learning.reader.batches.loader import Batch, to_inputs
from metric_learning.reader.preprocessing import Preprocessing


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode and give every module its own mode back afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@torch.inference_mode()
def iterate_embeddings(
    model: nn.Module,
    loader: Iterable[Batch],
    preprocessing: Preprocessing,
    device: torch.device,
    amp_dtype: torch.dtype | None = None,
) -> Iterator[Tensor]:
    """Yield the embeddings of one batch after the other, (B, D) float32 on `device`."""
    for batch in loader:
        images = to_inputs(batch, preprocessing, device)
        with torch.autocast(device.type, dtype=amp_dtype, enabled=amp_dtype is not None):
            embeddings = model(images)
        yield embeddings.float()


def extract(
    model: nn.Module,
    loader: Iterable[Batch],
    preprocessing: Preprocessing,
    device: torch.device,
    amp_dtype: torch.dtype | None = None,
    log: Callable[[str], object] | None = None,
    log_every: int = 10,
    is_stopped: Callable[[], bool] | None = None,
) -> np.ndarray:
    """Compute the embeddings of every image of a loader, each exactly once.

    Args:
        model: maps images (B, 3, H, W) to embeddings (B, D).
        loader: yields batches in data-set order.
        preprocessing: how their images become network inputs.
        device: where the model is.
        amp_dtype: compute the forward pass in this type; None computes in float32.
        log: receives the line `testbatch N, time S sec` every `log_every` batches.
        log_every: in batches; 0 logs nothing.
        is_stopped: asked after each batch; True leaves out the rest.

    Returns:
        Embeddings (N, D) float32, not normalised.

    Raises:
        ValueError: the loader yields nothing.
    """
    parts: list[np.ndarray] = []
    work = model, loader, preprocessing, device, amp_dtype, log, log_every, is_stopped
    extract_to(parts.append, *work)
    if not parts:
        raise ValueError("there is no image to embed: the data set is empty")
    return np.concatenate(parts)


def extract_to(
    write: Callable[[np.ndarray], object],
    model: nn.Module,
    loader: Iterable[Batch],
    preprocessing: Preprocessing,
    device: torch.device,
    amp_dtype: torch.dtype | None = None,
    log: Callable[[str], object] | None = None,
    log_every: int = 10,
    is_stopped: Callable[[], bool] | None = None,
) -> None:
    """Hand the embeddings (B, D) of each batch to `write`; the rest is as in `extract`."""
    started = time.perf_counter()
    with evaluation_mode(model):
        batches = iterate_embeddings(model, loader, preprocessing, device, amp_dtype)
        total = len(loader) if isinstance(loader, Sized) else None
        progress = tqdm(batches, total=total, disable=None, unit="batch", leave=False)
        for number, embeddings in enumerate(progress, start=1):
            write(embeddings.cpu().numpy())
            if log is not None and log_every and number % log_every == 0:
                now = time.perf_counter()
                log(f"testbatch {number}, time {(now - started) / log_every:.2f} sec")
                started = now
            if is_stopped is not None and is_stopped():
                return
