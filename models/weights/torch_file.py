"""Read what torch.save wrote, every byte checked where the form has checksums; no code is run.

The form since PyTorch 1.6 is a zip file, stored and not compressed: a pickle of the objects and an
entry of raw numbers per storage, each with a CRC-32, which torch.load does not look at. The form
before it is four pickles with the raw numbers behind them, and has no checksums.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from metric_learning.common.array_pickle import NUMPY_NAMES
from metric_learning.common.inert_pickle import Builder, InertUnpickler, checked_keys

ZIP = b"PK\x03\x04"
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how the form before starts
DATA = "data/"  # beginning of the names of the entries of numbers
LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, lengths of name and extra field
MOST_DIMENSIONS, MOST_SIZE = 64, 2**31  # of a tensor
STORAGES = {
    **{"Double": torch.float64, "Float": torch.float32, "Half": torch.float16},
    **{"BFloat16": torch.bfloat16, "Long": torch.int64, "Int": torch.int32, "Short": torch.int16},
    **{"Char": torch.int8, "Byte": torch.uint8, "Bool": torch.bool},
    **{"ComplexDouble": torch.complex128, "ComplexFloat": torch.complex64},
    **{"QInt8": torch.int8, "QUInt8": torch.uint8, "QInt32": torch.int32},
}


@dataclass(frozen=True)
class TorchFile:
    """The content of a file: plain values and tensors, strangers, oddities and NumPy's arrays."""

    content: Any
    strangers: set[str]  # names in it that are not known, as `module.name`


@dataclass(frozen=True)
class Oddity:
    """Stands for a tensor that cannot be weights: quantised, sparse, without data and so on."""

    kind: str


@dataclass(frozen=True)
class _Storage:
    """Numbers in a row."""

    data: torch.UntypedStorage
    dtype: torch.dtype
    size: int  # in numbers


def read_torch(path: Path, whole: bool = True) -> TorchFile:
    """Read a file of either form. The tensors of a zip stay in the file, as mapped memory.

    With `whole` false, the numbers of a zip are not checked, so that objects take no time.

    Raises ValueError where it is truncated, damaged or not a torch file, OSError if unreadable.
    """
    try:
        with path.open("rb") as file:
            if file.read(len(ZIP)) == ZIP:
                return _read_zip(path, whole)
            file.seek(0)
            return _read_legacy(file)
    except OSError:
        raise
    except Exception as error:  # a damaged file can raise anything
        reason = str(error).partition("\n")[0][:120] or type(error).__name__
        raise ValueError(
            f"{path}: truncated, damaged or not a torch file ({reason}); copy or fetch it again"
        ) from error


def _read_zip(path: Path, whole: bool) -> TorchFile:
    mapped: Any = torch.UntypedStorage.from_file(str(path), False, path.stat().st_size)
    numbers: Any = torch.empty(0, dtype=torch.uint8).set_(mapped).numpy()
    content = memoryview(numbers)
    places = {}
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            name, place = entry.filename.partition("/")[2], _place_of(entry, content)
            is_checked = whole or not name.startswith(DATA)
            if is_checked and zlib.crc32(content[place]) != entry.CRC:
                raise zipfile.BadZipFile(f"bytes of {entry.filename} have changed")
            places[name] = place

    if "data.pkl" not in places:
        raise zipfile.BadZipFile("it has no data.pkl")
    if "byteorder" in places and bytes(content[places["byteorder"]]) != b"little":
        raise ValueError("its byte order is that of another kind of machine")

    def find_data(key: str, num_bytes: int) -> torch.UntypedStorage:
        place = places[DATA + key]
        if place.stop - place.start < num_bytes:
            raise ValueError(f"storage {key} is too short")
        data: torch.UntypedStorage = mapped[place.start : place.start + num_bytes]
        return data

    unpickler = _TorchUnpickler(io.BytesIO(content[places["data.pkl"]]), find_data)
    return TorchFile(unpickler.load(), unpickler.strangers)


def _place_of(entry: zipfile.ZipInfo, content: memoryview) -> slice:
    """Return where in a zip file an entry's bytes are."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
        raise ValueError(
            "its zip entries are compressed, torch.save stores them: unpack and zip -0"
        )
    signature, *lengths = LOCAL_HEADER.unpack_from(content, entry.header_offset)
    start = entry.header_offset + LOCAL_HEADER.size + sum(lengths)
    if signature != ZIP or start + entry.file_size > len(content):
        raise zipfile.BadZipFile(f"entry {entry.filename} is not where it should be")
    return slice(start, start + entry.file_size)


def _read_legacy(file: IO[bytes]) -> TorchFile:
    """Read the form before: magic number, version, machine, objects, keys; then each storage."""
    left = os.fstat(file.fileno()).st_size
    storages: dict[str, tuple[torch.UntypedStorage, int]] = {}

    def make_room(key: str, num_bytes: int) -> torch.UntypedStorage:
        nonlocal left
        if key not in storages:
            left -= num_bytes
            if left < 0:
                raise ValueError("its tensors are larger than the file")
            storage = torch.UntypedStorage(num_bytes)  # type: ignore[no-untyped-call]
            storages[key] = storage, num_bytes
        storage, size = storages[key]
        if size < num_bytes:
            raise ValueError(f"storage {key} is too short")
        return storage

    for _ in range(2):
        InertUnpickler(file, {}).load()
    machine = InertUnpickler(file, {}).load()
    if not machine["little_endian"]:
        raise ValueError("its byte order is that of another kind of machine")
    unpickler = _TorchUnpickler(file, make_room)
    content = unpickler.load()

    for key in InertUnpickler(file, {}).load():
        storage, num_bytes = storages[key]
        file.read(8)  # its size in numbers, known from the objects
        if num_bytes:
            room = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
            if file.readinto(room) != num_bytes:  # type: ignore[attr-defined]
                raise EOFError("the file ends too early")
            del storages[key]
    if any(num_bytes for _, num_bytes in storages.values()):
        raise EOFError("tensors without data")
    return TorchFile(content, unpickler.strangers)


class _TorchUnpickler(InertUnpickler):
    """Builds tensors on what `find_data`, given a storage's key and size in bytes, returns."""

    def __init__(
        self, file: IO[bytes], find_data: Callable[[str, int], torch.UntypedStorage]
    ) -> None:
        super().__init__(file, TORCH_NAMES, encoding="utf-8")
        self.find_data = find_data
        self.storages: dict[tuple[str, torch.dtype], _Storage] = {}

    def persistent_load(self, about: Any) -> Any:
        """Return a storage: ("storage", type, key, device, size in numbers, None).

        The form before has ("module", class, its source) too.
        """
        if about[0] == "module":
            return about[1]
        tag, dtype, key, _, size, *rest = about
        if tag != "storage" or not isinstance(key, str) or rest not in ([], [None]):
            raise pickle.UnpicklingError("a storage of an unknown kind")
        if not isinstance(dtype, torch.dtype) or not _are_sizes([size]):
            raise pickle.UnpicklingError("a storage of an unknown type or size")

        if (key, dtype) not in self.storages:
            data = self.find_data(key, size * dtype.itemsize)
            self.storages[key, dtype] = _Storage(data, dtype, size)
        return self.storages[key, dtype]


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Any:
    """Build a tensor (since PyTorch 0.4) on a storage that holds all of it."""
    if not isinstance(storage, _Storage) or len(size) != len(stride) or len(size) > MOST_DIMENSIONS:
        raise pickle.UnpicklingError("a tensor without storage")
    if not _are_sizes([offset, *size, *stride]):
        raise pickle.UnpicklingError("a tensor of negative sizes")

    numel = math.prod(size)
    if numel == 0:
        is_absurd = max(size) > MOST_SIZE
        return Oddity("empty") if is_absurd else torch.empty(tuple(size), dtype=storage.dtype)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if last >= storage.size:
        raise pickle.UnpicklingError("a tensor that is larger than its data")
    if numel > storage.size:
        return Oddity("expanded")
    return torch.empty(0, dtype=storage.dtype).set_(
        storage.data, offset, tuple(size), tuple(stride)
    )


def _typed_tensor(
    storage: Any, offset: Any, size: Any, stride: Any, _grad: Any, _hooks: Any, dtype: Any, *_: Any
) -> Any:
    """Build a tensor of a type that has no storage of its own, on a storage of bytes."""
    if not isinstance(storage, _Storage) or not isinstance(dtype, torch.dtype):
        raise pickle.UnpicklingError("a tensor without storage or type")
    typed = _Storage(storage.data, dtype, storage.size // dtype.itemsize)
    return _tensor(typed, offset, size, stride)


def _of_subclass(function: Any, _kind: Any, arguments: Any, _state: Any) -> Any:
    """Build the plain tensor of one of a class of somebody's own."""
    return function.function(*arguments) if isinstance(function, Builder) else Oddity("foreign")


def _ordered(pairs: Any = ()) -> dict[Any, Any]:
    """Build a dict of pairs, as Python 2 wrote ordered ones."""
    items = [tuple(pair) for pair in pairs]
    checked_keys([key for key, _ in items])
    return dict(items)


def _are_sizes(numbers: list[Any]) -> bool:
    return all(type(number) is int and 0 <= number < 2**60 for number in numbers)


def _odd(kind: str) -> Builder:
    return Builder(lambda *_: Oddity(kind))


# What torch.save's files need of what a pickle may name.
TORCH_NAMES: dict[str, Any] = {
    **NUMPY_NAMES,
    "collections.OrderedDict": Builder(_ordered),
    "collections.defaultdict": Builder(lambda *_: {}),
    "builtins.set": Builder(lambda items=(): set(checked_keys(items))),
    "__builtin__.set": Builder(lambda items=(): set(checked_keys(items))),
    "torch.device": Builder(lambda *words: str(words)),
    "torch.Size": Builder(lambda *sizes: tuple(*sizes)),
    **{f"torch.{name}Storage": dtype for name, dtype in STORAGES.items()},
    **{f"torch.cuda.{name}Storage": dtype for name, dtype in STORAGES.items()},
    "torch.storage.UntypedStorage": torch.uint8,
    **{f"torch.{n}": value for n, value in vars(torch).items() if isinstance(value, torch.dtype)},
    "torch._utils._rebuild_tensor": Builder(_tensor),
    "torch._utils._rebuild_tensor_v2": Builder(_tensor),
    "torch._utils._rebuild_tensor_v3": Builder(_typed_tensor),
    "torch._utils._rebuild_parameter": Builder(lambda data, *_: data),
    "torch._utils._rebuild_parameter_with_state": Builder(lambda data, *_: data),
    "torch._tensor._rebuild_from_type_v2": Builder(_of_subclass),
    "torch._utils._rebuild_qtensor": _odd("quantised"),
    "torch._utils._rebuild_sparse_tensor": _odd("sparse"),
    "torch._utils._rebuild_nested_tensor": _odd("nested"),
    "torch._utils._rebuild_meta_tensor_no_storage": _odd("without data (of the meta device)"),
    "torch._utils._rebuild_wrapper_subclass": _odd("without data (of a class of its own)"),
    "torch._utils._rebuild_device_tensor_from_numpy": _odd("of an accelerator"),
}
