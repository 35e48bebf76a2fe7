"""Fingerprints of weights: of their tensors, whatever file these lie in."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from os import PathLike
from typing import Any

import numpy as np
import torch

from metric_learning.models.weights.files import read_weights

RANDOM = "random"  # --pretrained_model=random: untrained weights, as a baseline
COUNTERS = "num_batches_tracked"  # of batch norm: no embedding depends on them


def hash_tensors(tensors: Mapping[str, Any]) -> str:
    """Identify tensors or arrays by their names, shapes, types and bytes.

    The same weights have the same fingerprint in last.pt, last.safetensors and their exports.
    """
    digest = hashlib.sha256()
    for name in sorted(name for name in tensors if not name.endswith(COUNTERS)):
        values = torch.as_tensor(tensors[name]).detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        digest.update(values.flatten().view(torch.uint8).numpy().data)
    return f"sha256:{digest.hexdigest()}"


def hash_weights(path: str | PathLike[str]) -> str:
    """Identify the tensors of a weights file; ValueError or OSError where it is none."""
    file = read_weights(path)
    arrays = {name: np.ascontiguousarray(array) for name, array in file.arrays.items()}
    return hash_tensors(file.tensors or arrays)
