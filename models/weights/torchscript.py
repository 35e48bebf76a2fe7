"""Read the weights in a TorchScript archive without running the program in it."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

DATA, CONSTANTS = "data.pkl", "constants.pkl"  # torch.save writes no file of the second name
EXTRAS = "extra/"
STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return _folder_of(CONSTANTS, archive) is not None
    except zipfile.BadZipFile:
        return False


def read_torchscript(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a TorchScript archive by their names in the module.

    No name in the archive's pickle is looked up in Python: modules become dicts, tensors are built
    from their bytes, and names beside those that TorchScript writes are an error.

    Raises:
        ValueError: the archive is damaged, names code or holds no module.
        OSError: it cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            folder = _folder_of(DATA, archive)
            with archive.open(f"{folder}{DATA}") as file:
                module = _ModuleUnpickler(file, archive, f"{folder}data/").load()
        assert isinstance(module, _Module), "it holds no module"
        return dict(_tensors_of(module))
    except OSError:
        raise
    except Exception as error:  # a damaged archive can raise anything
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"{path}: not readable as TorchScript ({reason}); copy or fetch it again"
        ) from error


def read_extras(path: Path) -> dict[str, str]:
    """Return the extra files of a TorchScript archive that are text, by name."""
    with zipfile.ZipFile(path) as archive:
        start = f"{_folder_of(CONSTANTS, archive)}{EXTRAS}"
        names = [name for name in archive.namelist() if name.startswith(start)]
        return {
            name.removeprefix(start): archive.read(name).decode("utf-8", "replace")
            for name in names
        }


def _folder_of(name: str, archive: zipfile.ZipFile) -> str | None:
    """Return the folder of an archive, with its slash, that all files are in; None without it."""
    folders = [entry.partition("/")[0] for entry in archive.namelist()]
    entry = f"{folders[0]}/{name}" if folders else name
    return f"{folders[0]}/" if entry in archive.namelist() else None


class _Module:
    """Stands for every class of the archive's own program."""

    def __init__(self) -> None:
        self.attributes: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.attributes = state if isinstance(state, dict) else {}


class _Storage(NamedTuple):
    """The bytes of a tensor, and the type of its numbers."""

    data: bytes
    dtype: torch.dtype


def _build_tensor(storage: _Storage, offset: int, shape: Any, strides: Any, *_: Any) -> Any:
    numbers = torch.empty(0, dtype=storage.dtype)
    if storage.data:
        numbers = torch.frombuffer(bytearray(storage.data), dtype=storage.dtype)
    return numbers.as_strided(shape, strides, offset).clone()


def _build_list(items: list[Any], *_: Any) -> list[Any]:
    return items


class _ModuleUnpickler(pickle.Unpickler):
    """Hands out the stand-ins above and refuses every other name."""

    def __init__(self, file: Any, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(file)
        self.archive, self.folder = archive, folder

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "__torch__":
            return _Module
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if module == "torch.jit._pickle" and name.startswith("build_"):
            return _build_list
        allowed = {
            ("torch._utils", "_rebuild_tensor_v2"): _build_tensor,
            ("collections", "OrderedDict"): dict,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is refused as code")
        return allowed[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        _, dtype, name, *_ = pid
        return _Storage(self.archive.read(f"{self.folder}{name}"), dtype)


def _tensors_of(module: _Module, prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    for name, value in module.attributes.items():
        if isinstance(value, torch.Tensor):
            yield f"{prefix}{name}", value
        elif isinstance(value, _Module):
            yield from _tensors_of(value, f"{prefix}{name}.")
