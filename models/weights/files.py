"""Read any supported weights file into tensors by name."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from metric_learning.common.inert_pickle import describe_strangers
from metric_learning.common.schema import parse_json
from metric_learning.models.weights import paddle
from metric_learning.models.weights.checksum import check_file
from metric_learning.models.weights.groups import Group, find_groups
from metric_learning.models.weights.hub_folder import facts_in, is_hub_folder, own_names, weights_in
from metric_learning.models.weights.metadata import own_metadata
from metric_learning.models.weights.torch_file import LEGACY, ZIP, read_torch

HUB_FOLDER = "hub folder"
BARE = ("safetensors", HUB_FOLDER)  # forms that hold a network and no class weights of its training
PART = "::"  # FILE::PART: one of several networks in a file
OWN_GROUP = "model"  # of this project's checkpoints
COMPRESSED = (b"\x1f\x8b", b"\xfd7zXZ\0", b"BZh")
ONNX = b"\x08"  # its first field, the version of the form
IMAGES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"RIFF")


@dataclass(frozen=True)
class WeightsFile:
    """The content of a weights file."""

    path: Path  # the file or folder that was read
    source: str  # its form, for people: "safetensors", "torch", "paddle pickle" and so on
    # tensors by the place of their dict in the file, "" at the top; empty for Paddle's forms
    groups: dict[str, Group]
    arrays: dict[str, np.ndarray]  # Paddle's variables by name; empty for the other forms
    # facts that this project wrote beside the weights; None in files of others
    metadata: dict[str, Any] | None = None
    part: str = ""  # which of several networks is meant: a beginning of its names, or of a group's
    # what weights cannot be, by place and name: quantised, sparse and other tensors
    oddities: dict[str, str] = field(default_factory=dict)

    @property
    def tensors(self) -> Group:
        """The tensors of the network, by the names that the file uses: those of the largest group.

        Of several networks in one group, these are all of them, but for a part that was named.
        """
        found = [
            {key: group[key] for key in group if self.is_meant(f"{place}.{key}")}
            for place, group in self.groups.items()
        ]
        return max(found, key=len, default={})

    def is_meant(self, name: str) -> bool:
        """Whether a tensor or a prefix belongs to the part that was named, if any was."""
        return not self.part or f".{self.part}." in f".{name}."


def read_weights(path: str | PathLike[str]) -> WeightsFile:
    """Read a weights file or folder, its form told by its content; `FILE::PART` names a part of it.

    What the form has checksums for is checked. Nothing that a file names is run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no weights file, or a damaged one.
    """
    part = _split(path)[1]
    path, source = identify(path)
    if source == HUB_FOLDER:
        file = read_weights(weights_in(path))
        groups = {place: own_names(group, path) for place, group in file.groups.items()}
        return replace(file, groups=groups, part=part, metadata=facts_in(path))

    if source == "safetensors":
        return _read_safetensors(path, part)
    if source == "torch":
        return _read_torch(path, part)
    readers = {
        "paddle pickle": paddle.read_pickle,
        "paddle folder": paddle.read_folder,
        "paddle archive": paddle.read_archive,
    }
    return WeightsFile(path, source, {}, readers[source](path))


def read_metadata(path: str | PathLike[str]) -> dict[str, Any] | None:
    """Return the facts that this project wrote beside the weights; None for files of others."""
    path, source = identify(path)
    if source == HUB_FOLDER:
        return facts_in(path)
    if source == "safetensors":
        return _metadata_of(_open_safetensors(path)[1], path)
    is_torch = source == "torch"
    return own_metadata(_meta(read_torch(path, whole=False).content), path) if is_torch else None


def _split(path: str | PathLike[str]) -> tuple[Path, str]:
    """Split `FILE::PART`, unless a file has that name."""
    name, _, part = str(path).rpartition(PART)
    if not name or Path(path).expanduser().exists():
        return Path(path).expanduser(), ""
    return Path(name).expanduser(), part.strip(".")


def identify(path: str | PathLike[str]) -> tuple[Path, str]:
    """Return the path to read (`PREFIX.pdparams` may be given as `PREFIX`) and its form."""
    # Which file is meant.
    path, _ = _split(path)
    prefixed = path.with_name(f"{path.name}.pdparams")
    if not path.exists() and prefixed.is_file():
        path = prefixed
    if not path.exists():
        raise FileNotFoundError(
            f"weights file not found: {path}; give a torch, .safetensors or Paddle checkpoint "
            "(pretrained/README.md says how to get one)"
        )
    if path.is_dir():
        return path, HUB_FOLDER if is_hub_folder(path) else "paddle folder"
    if not path.is_file():
        raise ValueError(f"{path}: expected a weights file, found a pipe or a device")

    # Which form it has, by its first bytes.
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise ValueError(f"{path}: the weights file is empty; copy or fetch it again")
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        return path, "safetensors"
    if head.startswith(LEGACY) or (head.startswith(ZIP) and not _is_torchscript(path)):
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


def _read_safetensors(path: Path, part: str) -> WeightsFile:
    check_file(path)
    tensors, entries = _open_safetensors(path, with_tensors=True)
    return WeightsFile(path, "safetensors", {"": tensors}, {}, _metadata_of(entries, path), part)


def _open_safetensors(path: Path, with_tensors: bool = False) -> tuple[Group, dict[str, str]]:
    """Read the tensors of a file, if asked for, and the texts of its header."""
    try:
        with safe_open(path, framework="pt") as file:
            keys = file.keys() if with_tensors else ()
            return {key: file.get_tensor(key) for key in keys}, file.metadata() or {}
    except OSError:
        raise
    except Exception as error:  # types that this version of torch lacks are errors of other kinds
        reason = str(error).partition("\n")[0][:120] or type(error).__name__
        raise ValueError(
            f"{path}: not a readable safetensors file ({reason}); copy or fetch it again"
        ) from error


def _metadata_of(entries: dict[str, str], path: Path) -> dict[str, Any] | None:
    try:
        found = parse_json(entries.get("metadata", "null"), str(path))
    except ValueError:  # of another project
        return None
    return own_metadata(found, path)


def _read_torch(path: Path, part: str) -> WeightsFile:
    file = read_torch(path)
    groups, oddities = find_groups(file.content)
    metadata = own_metadata(_meta(file.content), path)
    if metadata is not None and not part:
        groups = {place: group for place, group in groups.items() if place == OWN_GROUP}
    if not groups:
        raise ValueError(f"{path}: holds no weights{_describe_rest(file.strangers, oddities)}")
    return WeightsFile(path, "torch", groups, {}, metadata, part, oddities)


def _describe_rest(strangers: set[str], oddities: dict[str, str]) -> str:
    """Say what a file holds instead of weights, and what to do."""
    if strangers:
        return (
            f" but Python objects ({describe_strangers(strangers)}), which are not made because "
            "they can run code; save the model's state_dict() alone"
        )
    if oddities:
        return f" but tensors that are {', '.join(sorted(set(oddities.values())))}; save plain ones"
    return "; expected a state dict, wherever it lies in the file"


def _meta(content: Any) -> Any:
    return content.get("meta") if isinstance(content, dict) else None
