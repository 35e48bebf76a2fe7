"""Read a pickle of NumPy arrays without ever running code that it names."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np


def load_array_pickle(path: Path, encoding: str = "latin1") -> Any:
    """Read a pickle of plain values, or of a dict of them, some of which are NumPy arrays.

    The pickle gets none of Python's or NumPy's own functions, only the stand-ins of this module,
    which build arrays of plain numbers. Any other name in it is a pickle.UnpicklingError. Text of
    Python 2 is in `encoding`; "bytes" leaves it as bytes.
    """
    with path.open("rb") as file:
        content = _ArrayUnpickler(file, encoding=encoding).load()
    if not isinstance(content, dict):
        return content
    return {
        name: value.array if isinstance(value, _PickledArray) else value
        for name, value in content.items()
    }


def read_array_pickle(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of a pickled dict; ValueError where it is damaged, names code or has none."""
    try:
        content = load_array_pickle(path)
    except OSError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"{path}: not readable as a pickle of arrays ({reason}); "
            "expected Paddle's PREFIX.pdparams or a file that torch.save wrote"
        ) from error

    items = content.items() if isinstance(content, dict) else ()
    arrays = {
        name: value
        for name, value in items
        if isinstance(name, str) and isinstance(value, np.ndarray)
    }
    if not arrays:
        raise ValueError(f"{path}: holds no arrays; expected Paddle's parameters, name -> array")
    return arrays


class _PickledType:
    """Stands for numpy.dtype: plain numbers only."""

    def __init__(self, code: str | bytes, *_: Any):
        self.dtype = np.dtype(_text(code))
        if self.dtype.kind not in "biuf":
            raise pickle.UnpicklingError(f"array of type {code!r}")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.dtype = self.dtype.newbyteorder(_text(state[1]))  # type: ignore[arg-type]


class _PickledArray:
    """Stands for numpy.ndarray and its constructors."""

    def __init__(self, *_: Any):
        self.array: np.ndarray | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, is_fortran, data = state
        data = data.encode("latin1") if isinstance(data, str) else data
        array = np.frombuffer(data, kind.dtype)
        self.array = array.reshape(shape, order="F" if is_fortran else "C")


def _from_buffer(data: bytes, kind: _PickledType, shape: Any, order: str) -> _PickledArray:
    pickled = _PickledArray()
    pickled.__setstate__((1, shape, kind, order == "F", data))
    return pickled


def _text(word: str | bytes) -> str:
    return word.decode("latin1") if isinstance(word, bytes) else word


def _encode(text: str, encoding: str | bytes) -> bytes:
    if _text(encoding) != "latin1":
        raise pickle.UnpicklingError(f"text in encoding {encoding!r}")
    return text.encode("latin1")


class _ArrayUnpickler(pickle.Unpickler):
    """Hands out the stand-ins above for NumPy's array pickles and refuses every other name."""

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy._core", "numpy.core")
        allowed = {
            ("numpy", "ndarray"): _PickledArray,
            ("numpy", "dtype"): _PickledType,
            ("numpy.core.multiarray", "_reconstruct"): _PickledArray,
            ("numpy.core.numeric", "_frombuffer"): _from_buffer,
            ("_codecs", "encode"): _encode,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is refused as code")
        return allowed[module, name]
