"""Files that commands write."""

from __future__ import annotations

from pathlib import Path


def prepare_output(flag: str, file: str) -> Path:
    """Make the folder of a result file; ValueError, before the work, where it cannot be written."""
    path = Path(file)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--{flag}={file} cannot be written: {error.strerror}") from error
    if path.is_dir():
        raise ValueError(f"--{flag}={file}: expected a file to write, found a folder")
    return path
