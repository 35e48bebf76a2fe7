"""Read PaddlePaddle checkpoints in both forms, and name their ResNet variables as timm does."""

from __future__ import annotations

import lzma
import math
import re
import struct
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
import torch

from metric_learning.common.array_pickle import read_array_pickle

PADDLE_MODELS = ("ResNet18", "ResNet34", "ResNet50", "ResNet101", "ResNet152")

# By VarType.Type of Paddle's framework.proto.
DTYPES = {0: "?", 1: "<i2", 2: "<i4", 3: "<i8", 4: "<f2", 5: "<f4", 6: "<f8", 20: "u1", 21: "i1"}
VERSION_0 = bytes(4)  # what every variable file begins with
MOST_BYTES = 2**32  # of all variables; those of ResNet152 take 240 MB
CLASS_LAYER = 1000  # width of the ImageNet class layer in Paddle's published weights

OPTIMIZER_VARIABLE = re.compile(
    r"@.*|learning_rate.*|.*_(velocity|moment\d?|beta\d_pow_acc|mean_square|mean_grad)_\d+"
)
HEAD_VARIABLE = re.compile(r"weight_norm.*|fc_?\d+[._]\w+")
BATCH_NORM = {
    "scale": "weight",
    "offset": "bias",
    "mean": "running_mean",
    "variance": "running_var",
}
STEM = re.compile(r"(?:conv1_(?P<conv>weights)|bn_conv1_(?P<bn>scale|offset|mean|variance))")
BLOCK = re.compile(
    r"(?P<kind>res|bn)(?P<stage>[2-5])(?P<block>b\d+|[a-z])_branch(?P<branch>1|2[abc])_"
    r"(?P<part>weights|scale|offset|mean|variance)"
)


def read_pickle(path: Path) -> dict[str, np.ndarray]:
    """Read `PREFIX.pdparams`, a pickle of name -> array."""
    arrays = read_array_pickle(path)
    return {name: arrays[name] for name in arrays if not OPTIMIZER_VARIABLE.fullmatch(name)}


def read_folder(path: Path) -> dict[str, np.ndarray]:
    """Read a folder that holds one binary file per variable."""
    files = (file for file in sorted(path.iterdir()) if file.is_file())
    return _read_variables(((file.name, file.open("rb"), str(file)) for file in files), path)


def read_archive(path: Path) -> dict[str, np.ndarray]:
    """Read a tar archive (plain, gz, bz2 or xz) of such a folder, in memory."""
    try:
        with tarfile.open(path, "r:*") as archive:
            return _read_variables(_members(archive, path), path)
    except (tarfile.TarError, EOFError, OSError, lzma.LZMAError, zlib.error, struct.error) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path}: not a readable archive ({reason}); fetch it again") from error


def to_state_dict(
    arrays: dict[str, np.ndarray], feature_size: int, embedding_size: int
) -> dict[str, torch.Tensor]:
    """Name variables as timm does; variables that are no part of a ResNet keep their names.

    The sizes are widths, of the backbone's pooled feature and of the model's embedding layer (0: it
    has none).
    """
    names = {name: _resnet_name(name) or name for name in arrays}
    if _has_embedding(arrays, feature_size, embedding_size):
        names |= {"fc_0.w_0": "embedding.weight", "fc_0.b_0": "embedding.bias"}
    tensors = {}
    for name, array in arrays.items():
        array = array.T if names[name] == "embedding.weight" else array
        tensors[names[name]] = torch.from_numpy(np.array(array, order="C"))
    return tensors


def is_head(name: str) -> bool:
    """Tell whether a Paddle variable belongs to a class layer or a loss."""
    return HEAD_VARIABLE.fullmatch(name) is not None


def _has_embedding(arrays: dict[str, np.ndarray], feature_size: int, embedding_size: int) -> bool:
    """Tell whether fc_0 is the embedding layer.

    Paddle counts its linear layers, so fc_0 is the class layer where no embedding layer precedes
    it. Another head beside it settles the matter; otherwise a layer that is wider than the
    feature, or as wide as ImageNet has classes, is taken for a class layer.
    """
    if "fc_0.w_0" not in arrays or arrays["fc_0.w_0"].ndim != 2:
        return False
    size: int = arrays["fc_0.w_0"].shape[1]
    if size == embedding_size or any(is_head(n) and not n.startswith("fc_0.") for n in arrays):
        return True
    return size <= feature_size and size != CLASS_LAYER


def _resnet_name(name: str) -> str | None:
    """Return timm's name of a ResNet variable, e.g. layer3.1.bn2.weight of bn4b1_branch2b_scale."""
    stem = STEM.fullmatch(name)
    if stem:
        return "conv1.weight" if stem["conv"] else f"bn1.{BATCH_NORM[stem['bn']]}"
    match = BLOCK.fullmatch(name)
    if match is None or (match["kind"] == "res") != (match["part"] == "weights"):
        return None
    block = int(match["block"][1:]) if len(match["block"]) > 1 else ord(match["block"]) - ord("a")
    is_convolution = match["kind"] == "res"
    if match["branch"] == "1":
        layer = "downsample.0" if is_convolution else "downsample.1"
    else:
        layer = ("conv" if is_convolution else "bn") + str("abc".index(match["branch"][1]) + 1)
    part = "weight" if is_convolution else BATCH_NORM[match["part"]]
    return f"layer{int(match['stage']) - 1}.{block}.{layer}.{part}"


def _members(archive: tarfile.TarFile, path: Path) -> Iterator[tuple[str, IO[bytes], str]]:
    """Yield name, open file and origin of an archive's regular files."""
    for member in archive:
        if member.issparse():
            raise ValueError(f"{path}: {member.name} has holes, which no variable has")
        file = archive.extractfile(member) if member.isfile() else None
        if file is not None:
            yield Path(member.name).name, file, f"{path}: {member.name}"


def _read_variables(
    files: Iterable[tuple[str, IO[bytes], str]], path: Path
) -> dict[str, np.ndarray]:
    """Parse the files that are variables; others (a README) are passed over."""
    arrays: dict[str, np.ndarray] = {}
    left = MOST_BYTES
    for name, file, origin in files:
        with file:
            head = file.read(4)
            is_variable = _resnet_name(name) is not None or is_head(name) or head == VERSION_0
            if not is_variable or OPTIMIZER_VARIABLE.fullmatch(name):
                continue
            content = head + file.read(left)
            left -= len(content)

        if left <= 0:
            raise ValueError(f"{path}: its variables are larger than any network's")
        if name in arrays:
            raise ValueError(f"{path}: holds variable {name} twice; keep one checkpoint in it")
        arrays[name] = _parse_variable(content, origin)

    if not arrays:
        raise ValueError(
            f"{path}: holds no Paddle variables; expected one binary file per variable, "
            "such as conv1_weights; to load a single weights file name that file"
        )
    return arrays


def _parse_variable(content: bytes, origin: str) -> np.ndarray:
    """Parse one LoDTensor.

    uint32 version; uint64 number of LoD levels, each uint64 size and as many bytes; uint32
    version; int32 size of the description; the description (protobuf); the data. Little-endian.
    """
    try:
        version, num_levels = struct.unpack_from("<IQ", content)
        offset = 12
        for _ in range(num_levels):
            offset += 8 + struct.unpack_from("<Q", content, offset)[0]
        tensor_version, size = struct.unpack_from("<Ii", content, offset)
        offset += 8
        dtype, shape = _parse_description(content[offset : offset + size])
        offset += size

        if version or tensor_version or size < 0:
            raise ValueError("unknown version")
        if len(content) - offset != math.prod(shape) * dtype.itemsize:
            raise ValueError("the data's length does not fit its shape")
        return np.frombuffer(content, dtype, offset=offset).reshape(shape)
    except (struct.error, ValueError, IndexError, KeyError, OverflowError) as error:
        raise ValueError(
            f"{origin}: truncated or no Paddle variable ({error}); copy the checkpoint again"
        ) from error


def _parse_description(content: bytes) -> tuple[np.dtype, list[int]]:
    """Parse a TensorDesc message: field 1 is the data type, field 2 repeats the dimensions."""
    kind, shape, offset = 5, [], 0
    while offset < len(content):
        field, offset = _varint(content, offset)
        value, offset = _varint(content, offset)

        if field == 0x08:
            kind = value
        elif field == 0x10:
            shape.append(value)
        elif field == 0x12:  # packed dimensions: the value is their length in bytes
            end = offset + value
            while offset < end:
                value, offset = _varint(content, offset)
                shape.append(value)
        else:
            raise ValueError("unknown field in its description")
    return np.dtype(DTYPES[kind]), shape


def _varint(content: bytes, offset: int) -> tuple[int, int]:
    """Read a base-128 integer; return it and the offset behind it."""
    value = shift = 0
    while True:
        byte = content[offset]
        value |= (byte & 0x7F) << shift
        offset, shift = offset + 1, shift + 7
        if byte < 0x80:
            return value, offset
