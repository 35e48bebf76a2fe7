"""Reads annotations of a MATLAB file in a process of its own, for a damaged one may crash scipy."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

SECONDS = 60  # after which a file is given up


def read_mat(path: Path, *variables: str) -> dict[str, Any]:
    """Read variables of a MATLAB file: texts as a list, a struct array as field -> list.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or lacks a variable.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    status = path.stat()
    found = _read(path, (status.st_size, status.st_mtime_ns), variables)
    for variable in variables:
        if variable not in found:
            raise ValueError(f"{path}: expected the variable {variable}")
    return found


@lru_cache(maxsize=8)  # both splits are in the same files
def _read(path: Path, state: tuple[int, int], variables: tuple[str, ...]) -> dict[str, Any]:
    command = [sys.executable, __file__, str(path), *variables]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        raise ValueError(f"{path}: not a MATLAB file: not read in {SECONDS} s") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        reason = lines[-1] if lines and done.returncode > 0 else f"status {done.returncode}"
        raise ValueError(f"{path}: not a MATLAB file: {reason}")

    found: dict[str, Any] = json.loads(done.stdout)
    return found


def load_variables(path: str, variables: list[str]) -> dict[str, Any]:
    """Read variables of a MATLAB file in this process, as far as they are there."""
    import numpy as np
    from scipy.io import loadmat

    mat = loadmat(path, squeeze_me=True, variable_names=variables)
    found: dict[str, Any] = {}
    for name in variables:
        if name in mat:
            array = np.atleast_1d(mat[name])
            fields = array.dtype.names
            found[name] = (
                {field: _plain(array[field]) for field in fields} if fields else _plain(array)
            )
    return found


def _plain(values: Any) -> list[int | str]:
    """Write whole numbers as int, everything else as text."""
    plain: list[int | str] = []
    for value in values:
        text = str(value)
        plain.append(int(text) if text.isascii() and text.isdecimal() else text)
    return plain


if __name__ == "__main__":
    # The names of files beside this one are not those of modules that scipy looks for.
    sys.path = [folder for folder in sys.path if folder != str(Path(__file__).parent)]
    print(json.dumps(load_variables(sys.argv[1], sys.argv[2:])))
