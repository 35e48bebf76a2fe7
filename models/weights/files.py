"""Read any supported weights file into tensors by name."""

from __future__ import annotations

import pickle
import re
import zipfile
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from metric_learning.common.schema import parse_json
from metric_learning.models.weights import paddle
from metric_learning.models.weights.metadata import own_metadata

WRAPPERS = ("model", "state_dict", "model_state_dict")
COMPRESSED = (b"\x1f\x8b", b"\xfd7zXZ\0", b"BZh")
ZIP = b"PK\x03\x04"
TORCH_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
ONNX = b"\x08"  # its first field, the version of the form
IMAGES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"RIFF")


@dataclass(frozen=True)
class WeightsFile:
    """The content of a weights file."""

    path: Path  # the file or folder that was read
    source: str  # its form, for people: "safetensors", "torch", "paddle pickle" and so on
    # tensors by the names that the file uses; empty for Paddle's forms
    tensors: dict[str, torch.Tensor]
    arrays: dict[str, np.ndarray]  # Paddle's variables by name; empty for the other forms
    # facts that this project wrote beside the weights; None in files of others
    metadata: dict[str, Any] | None = None


def read_weights(path: str | PathLike[str]) -> WeightsFile:
    """Read a weights file or folder, its form told by its content.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no weights file, or a damaged one.
    """
    path, source = identify(path)
    if source == "safetensors":
        return _read_safetensors(path)
    if source == "torch":
        return _read_torch(path)
    readers = {
        "paddle pickle": paddle.read_pickle,
        "paddle folder": paddle.read_folder,
        "paddle archive": paddle.read_archive,
    }
    return WeightsFile(path, source, {}, readers[source](path))


def identify(path: str | PathLike[str]) -> tuple[Path, str]:
    """Return the path to read (`PREFIX.pdparams` may be given as `PREFIX`) and its form."""
    # Which file is meant.
    path = Path(path).expanduser()
    prefixed = path.with_name(f"{path.name}.pdparams")
    if not path.exists() and prefixed.is_file():
        path = prefixed
    if not path.exists():
        raise FileNotFoundError(
            f"weights file not found: {path}; give a torch, .safetensors or Paddle checkpoint "
            "(pretrained/README.md says how to get one)"
        )
    if path.is_dir():
        return path, "paddle folder"

    # Which form it has, by its first bytes.
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise ValueError(f"{path}: the weights file is empty; copy or fetch it again")
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        return path, "safetensors"
    if head.startswith(TORCH_LEGACY) or (head.startswith(ZIP) and not _is_torchscript(path)):
        return path, "torch"
    if head.startswith(COMPRESSED) or head[257:262] == b"ustar":
        return path, "paddle archive"
    if head.startswith(b"\x80"):
        return path, "paddle pickle"
    raise ValueError(
        f"{path}: not a weights file but {_describe(head)}; expected a torch (.pt, .pth, .tar), "
        ".safetensors or Paddle (.pdparams, folder) checkpoint"
    )


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:  # torch.save writes no constants
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except zipfile.BadZipFile:
        return False


def _describe(head: bytes) -> str:
    """Name the kind of a file that holds no weights."""
    if head.startswith(paddle.VERSION_0):
        return "perhaps one variable of a Paddle checkpoint (then give its folder)"
    if head.startswith(IMAGES):
        return "an image"
    if b"<html" in head.lower() or b"<!doctype" in head.lower():
        return "a web page (fetch the file itself)"
    if head.startswith(ZIP):
        return (
            "a TorchScript archive (give the checkpoint that it was exported from, or what "
            "--export=safetensors makes of that)"
        )
    if head.startswith(ONNX):
        return "an ONNX network (give the checkpoint that it was made of)"
    if head.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS (run git lfs pull)"

    return "of an unknown format" if b"\0" in head else "text"


def _read_safetensors(path: Path) -> WeightsFile:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            entries = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(
            f"{path}: not a readable safetensors file ({error}); copy or fetch it again"
        ) from error
    try:
        metadata = parse_json(entries.get("metadata", "null"), str(path))
    except ValueError:
        metadata = None
    return WeightsFile(path, "safetensors", tensors, {}, own_metadata(metadata, path))


def _read_torch(path: Path) -> WeightsFile:
    with path.open("rb") as file:
        is_zip = file.read(len(ZIP)) == ZIP  # the legacy form cannot be mapped
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f" ({named[1]})" if named else ""
        raise ValueError(
            f"{path}: holds Python objects besides tensors{what}, which are not loaded because "
            "they can run code; save the model's state_dict() alone"
        ) from error
    except Exception as error:  # torch.load of a damaged file can raise anything
        reason = str(error).partition("\n")[0][:120]
        raise ValueError(
            f"{path}: truncated, damaged or not a torch file ({reason}); copy or fetch it again"
        ) from error

    metadata = content.get("meta") if isinstance(content, dict) else None
    return WeightsFile(
        path, "torch", _find_tensors(content, path), {}, own_metadata(metadata, path)
    )


def _find_tensors(content: Any, path: Path) -> dict[str, torch.Tensor]:
    """Return the state dict itself or the one under a usual key."""
    while isinstance(content, dict):
        inner = next((content[key] for key in WRAPPERS if isinstance(content.get(key), dict)), None)
        if inner is None:
            break
        content = inner

    items = content.items() if isinstance(content, dict) else ()
    tensors = {
        key: value
        for key, value in items
        if isinstance(key, str) and isinstance(value, torch.Tensor)
    }
    if not tensors:
        raise ValueError(
            f"{path}: holds no weights; expected a state dict, plain or under {', '.join(WRAPPERS)}"
        )
    return tensors
