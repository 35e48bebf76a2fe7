"""Files that the scripts write and the weights that they depend on."""

from __future__ import annotations

import hashlib
from pathlib import Path

from models.files import identify

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


def prepare_output(flag: str, file: str) -> Path:
    """Make the folder of a result file, so that a wrong path is an error before the work.

    Raises:
        ValueError: the file cannot be written.
    """
    path = Path(file)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--{flag}={file} cannot be written: {error.strerror}") from error
    if path.is_dir():
        raise ValueError(f"--{flag}={file}: expected a file to write, found a folder")
    return path
