"""A fingerprint that identifies weights, whatever the name of their file."""

from __future__ import annotations

import hashlib

from metric_learning.models.weights.files import identify

HASH_BYTES = 2**20  # read at once
RANDOM = "random"  # --pretrained_model=random: untrained weights, as a baseline


def fingerprint(weights: str, seed: int) -> str:
    """Return the SHA-256 of a weights file, or of all files of a folder; random ones are a seed."""
    if weights == RANDOM:
        return f"{RANDOM} weights of --seed={seed}"
    path, _ = identify(weights)
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            while block := opened.read(HASH_BYTES):
                digest.update(block)
    return f"sha256:{digest.hexdigest()}"
