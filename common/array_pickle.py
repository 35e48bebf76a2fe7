"""Read a pickle of NumPy arrays without ever running code that it names."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from metric_learning.common.inert_pickle import (
    Builder,
    InertUnpickler,
    Stateful,
    describe_strangers,
)
from metric_learning.common.text_files import check_regular


def load_array_pickle(path: Path, encoding: str = "latin1") -> Any:
    """Read a pickle of plain values, or of a dict of them, some of which are NumPy arrays.

    Arrays of other things than plain numbers are None. Any name in it but those of NumPy's arrays
    is a pickle.UnpicklingError. Text of Python 2 is in `encoding`; "bytes" leaves it as bytes.
    """
    content, strangers = _load(path, encoding)
    if strangers:
        asked = describe_strangers(strangers)
        raise pickle.UnpicklingError(f"it asks for {asked}, which is refused as code")
    return content


def read_array_pickle(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of a pickled dict, and nothing else of it.

    ValueError where it is damaged or has no arrays.
    """
    try:
        content, strangers = _load(path, "latin1")
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
        asked = describe_strangers(strangers)
        beside = f" but objects ({asked}), which are refused as code" if asked else ""
        raise ValueError(
            f"{path}: holds no arrays{beside}; expected Paddle's parameters, name -> array"
        )
    return arrays


def _load(path: Path, encoding: str) -> tuple[Any, set[str]]:
    """Read a pickle: its content, and the names in it that are not NumPy's."""
    check_regular(path, str(path))
    with path.open("rb") as file:
        unpickler = InertUnpickler(file, NUMPY_NAMES, encoding)
        content = unpickler.load()
    if isinstance(content, dict):
        content = {
            name: value.array if isinstance(value, PickledArray) else value
            for name, value in content.items()
        }
    return content, unpickler.strangers


class _PickledType(Stateful):
    """Stands for numpy.dtype; the `dtype` is None where it is not one of plain numbers."""

    def __init__(self, code: str | bytes, *_: Any):
        dtype = np.dtype(_text(code))
        self.dtype = dtype if dtype.kind in "biuf" else None

    def set_state(self, state: Any) -> None:
        """Take the byte order."""
        if self.dtype is not None:
            self.dtype = self.dtype.newbyteorder(_text(state[1]))  # type: ignore[arg-type]


class PickledArray(Stateful):
    """Stands for numpy.ndarray; its `array` is None until the pickle has given plain numbers."""

    def __init__(self, *_: Any):
        self.array: np.ndarray | None = None

    def set_state(self, state: Any) -> None:
        """Take shape, type and data."""
        _, shape, kind, is_fortran, data = state
        if kind.dtype is None:  # texts, dates, objects: nothing is made of them
            return
        data = data.encode("latin1") if isinstance(data, str) else data
        array = np.frombuffer(data, kind.dtype)
        self.array = array.reshape(shape, order="F" if is_fortran else "C")


def _from_buffer(data: bytes, kind: _PickledType, shape: Any, order: str) -> PickledArray:
    pickled = PickledArray()
    pickled.set_state((1, shape, kind, order == "F", data))
    return pickled


def _text(word: str | bytes) -> str:
    return word.decode("latin1") if isinstance(word, bytes) else word


def _encode(text: str, encoding: str | bytes) -> bytes:
    if _text(encoding) != "latin1":
        raise pickle.UnpicklingError(f"text in encoding {encoding!r}")
    return text.encode("latin1")


# What NumPy's arrays need of what a pickle may name.
NUMPY_NAMES = {
    "numpy.ndarray": Builder(PickledArray),
    "numpy.dtype": Builder(_PickledType),
    "_codecs.encode": Builder(_encode),
    **{
        f"numpy.{core}.{name}": Builder(function)
        for core in ("core", "_core")
        for name, function in (
            ("multiarray._reconstruct", PickledArray),
            ("numeric._frombuffer", _from_buffer),
        )
    },
}
