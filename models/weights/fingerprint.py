"""Fingerprints of weights: of their tensors, whatever file these lie in."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metric_learning.common.fingerprint import state_of
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
    """Identify the tensors of a weights file; ValueError or OSError where it is none.

    A file whose size and times are as they were when this process read it is not read again.
    """
    is_file = Path(path).is_file()
    return _hash_file(str(path), state_of(str(path))) if is_file else _hash_file.__wrapped__(path)


@lru_cache(maxsize=16)
def _hash_file(path: str, state: str = "") -> str:
    file = read_weights(path)
    arrays = {name: np.ascontiguousarray(array) for name, array in file.arrays.items()}
    return hash_tensors(file.tensors or arrays)
