"""Names that Hugging Face's transformers gives the tensors of image models, and those of timm.

Known are DINOv2 (with registers and without), DINOv3 (its vision and its convolutional
transformers) and the image tower of SigLIP and SigLIP 2 at a fixed size.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import torch

from metric_learning.models.weights.groups import Group

Rules = Mapping[str, str]  # beginning of a name, as a regular expression -> what stands there


class Family(NamedTuple):
    """How a family of models is told, and how its tensors are renamed.

    Attributes:
        anchors: ends of names that only such a file has all of; before the first stands the prefix
            of all of them.
        rules: the first rule that fits the whole of a name renames it; others stay as they are.
        finish: changes what a rename cannot.
    """

    anchors: tuple[str, ...]
    rules: Rules
    finish: Callable[[Group], Group]


def to_timm(tensors: Group, wanted: Collection[str]) -> Group:
    """Return the tensors of a dict by timm's names, if it has those of transformers; else itself.

    `wanted` are names of the model that they are for. What belongs to no image model keeps its
    name, so that it is listed as left out.
    """
    for family in FAMILIES:
        prefix = _prefix_of(tensors, family.anchors)
        if prefix is not None:
            own = {key.removeprefix(prefix): key for key in tensors if key.startswith(prefix)}
            renamed = {_rename(key, family.rules): tensors[own[key]] for key in own}
            others = {key: tensors[key] for key in tensors if not key.startswith(prefix)}
            found = family.finish(renamed)
            return others | {
                key: tensor for key, tensor in found.items() if key in wanted or _says(tensor)
            }
    return tensors


def _says(tensor: torch.Tensor) -> bool:
    """Whether a tensor adds anything: the biases of DINOv3's queries and values are zero."""
    return tensor.ndim != 1 or bool(tensor.any())


def _prefix_of(tensors: Group, anchors: tuple[str, ...]) -> str | None:
    """Return what stands before the names of a family, None where they are not all there."""
    first, *others = anchors
    for key in tensors:
        if key.endswith(first):
            prefix = key[: len(key) - len(first)]
            if all(
                any(re.fullmatch(other, name) for name in _after(tensors, prefix))
                for other in others
            ):
                return prefix
    return None


def _after(tensors: Group, prefix: str) -> list[str]:
    return [key[len(prefix) :] for key in tensors if key.startswith(prefix)]


def _rename(key: str, rules: Rules) -> str:
    for pattern, name in rules.items():
        renamed, count = re.subn(f"^{pattern}$", name, key)
        if count:
            return renamed
    return key


def _join(tensors: Group, parts: tuple[str, ...], joined: str) -> Group:
    """Stack tensors whose names end in `.PART.weight` or `.PART.bias` under the name of all."""
    found = dict(tensors)
    for key in tensors:
        stem, dot, kind = key.rpartition(".")
        names = [f"{stem.removesuffix(parts[0])}{part}.{kind}" for part in parts]
        if dot and stem.endswith(f".{parts[0]}") and all(name in found for name in names):
            rows = [found.pop(name) for name in names]
            found[f"{stem.removesuffix(parts[0])}{joined}.{kind}"] = torch.cat(rows)
    return found


def _finish_dinov2(tensors: Group) -> Group:
    found = _join(_join(tensors, ("q", "k", "v"), "qkv"), ("gate", "up"), "fc1")
    if "reg_token" in found:  # then timm adds no position to the class token, but has it in it
        positions = found["pos_embed"]
        found["cls_token"] = found["cls_token"] + positions[:, :1]
        found["pos_embed"] = positions[:, 1:]
    return found


def _finish_dinov3(tensors: Group) -> Group:
    found = {
        re.sub(r"\.attn\.(q|v)\.bias$", r".attn.\1_bias", key): tensor
        for key, tensor in tensors.items()
    }
    gated = {key.replace("fc1_g.", "fc1.") for key in found if ".mlp.fc1_g." in key}
    found = {key.replace(".fc1.", ".fc1_x.") if key in gated else key: found[key] for key in found}
    return _join(found, ("q", "k", "v"), "qkv")


def _finish_siglip(tensors: Group) -> Group:
    found = _join(tensors, ("q", "k", "v"), "qkv")
    found["pos_embed"] = found["pos_embed"][None]
    for kind in ("weight", "bias"):  # of the query, and of keys and values
        joined = found.pop(f"attn_pool.qkv.{kind}")
        size = len(joined) // 3
        found[f"attn_pool.q.{kind}"] = joined[:size]
        found[f"attn_pool.kv.{kind}"] = joined[size:]
    return found


BLOCK = r"(?:encoder\.|model\.)?layers?\.(\d+)\."
DINO_BLOCK = {
    BLOCK + r"(norm[12])\.(.*)": r"blocks.\1.\2.\3",
    BLOCK + r"attention\.(?:attention\.)?(q|k|v)(?:uery|ey|alue|_proj)\.(.*)": (
        r"blocks.\1.attn.\2.\3"
    ),
    BLOCK + r"attention\.(?:output\.dense|o_proj)\.(.*)": r"blocks.\1.attn.proj.\2",
}
FAMILIES = (
    Family(
        ("embeddings.patch_embeddings.projection.weight", r"encoder\.layer\.0\.norm1\.weight"),
        {
            r"embeddings\.cls_token": "cls_token",
            r"embeddings\.register_tokens": "reg_token",
            r"embeddings\.position_embeddings": "pos_embed",
            r"embeddings\.patch_embeddings\.projection\.(.*)": r"patch_embed.proj.\1",
            **DINO_BLOCK,
            BLOCK + r"layer_scale([12])\.lambda1": r"blocks.\1.ls\2.gamma",
            BLOCK + r"mlp\.(fc[12])\.(.*)": r"blocks.\1.mlp.\2.\3",
            BLOCK + r"mlp\.weights_in\.(.*)": r"blocks.\1.mlp.fc1.\2",
            BLOCK + r"mlp\.(gate|up)_proj\.(.*)": r"blocks.\1.mlp.\2.\3",
            BLOCK + r"mlp\.(?:weights_out|down_proj)\.(.*)": r"blocks.\1.mlp.fc2.\2",
            r"layernorm\.(.*)": r"norm.\1",
        },
        _finish_dinov2,
    ),
    Family(
        ("embeddings.patch_embeddings.weight", r"(?:model\.)?layer\.0\.attention\.q_proj\.weight"),
        {
            r"embeddings\.cls_token": "cls_token",
            r"embeddings\.register_tokens": "reg_token",
            r"embeddings\.patch_embeddings\.(.*)": r"patch_embed.proj.\1",
            **DINO_BLOCK,
            BLOCK + r"layer_scale([12])\.lambda1": r"blocks.\1.gamma_\2",
            BLOCK + r"mlp\.gate_proj\.(.*)": r"blocks.\1.mlp.fc1_g.\2",
            BLOCK + r"mlp\.up_proj\.(.*)": r"blocks.\1.mlp.fc1.\2",
            BLOCK + r"mlp\.down_proj\.(.*)": r"blocks.\1.mlp.fc2.\2",
        },
        _finish_dinov3,
    ),
    Family(
        ("layer_norm.weight", r"(?:model\.)?stages\.0\.layers\.0\.depthwise_conv\.weight"),
        {
            r"(?:model\.)?stages\.0\.downsample_layers\.([01])\.(.*)": r"stem.\1.\2",
            r"(?:model\.)?stages\.(\d)\.downsample_layers\.([01])\.(.*)": (
                r"stages.\1.downsample.\2.\3"
            ),
            r"(?:model\.)?stages\.(\d)\.layers\.(\d+)\.gamma": r"stages.\1.blocks.\2.gamma",
            r"(?:model\.)?stages\.(\d)\.layers\.(\d+)\.depthwise_conv\.(.*)": (
                r"stages.\1.blocks.\2.conv_dw.\3"
            ),
            r"(?:model\.)?stages\.(\d)\.layers\.(\d+)\.layer_norm\.(.*)": (
                r"stages.\1.blocks.\2.norm.\3"
            ),
            r"(?:model\.)?stages\.(\d)\.layers\.(\d+)\.pointwise_conv([12])\.(.*)": (
                r"stages.\1.blocks.\2.mlp.fc\3.\4"
            ),
            r"layer_norm\.(.*)": r"head.norm.\1",
        },
        dict,
    ),
    Family(
        ("embeddings.patch_embedding.weight", r"head\.probe"),
        {
            r"embeddings\.position_embedding\.weight": "pos_embed",
            r"embeddings\.patch_embedding\.(.*)": r"patch_embed.proj.\1",
            BLOCK + r"layer_norm([12])\.(.*)": r"blocks.\1.norm\2.\3",
            BLOCK + r"self_attn\.(q|k|v)_proj\.(.*)": r"blocks.\1.attn.\2.\3",
            BLOCK + r"self_attn\.out_proj\.(.*)": r"blocks.\1.attn.proj.\2",
            BLOCK + r"mlp\.(fc[12])\.(.*)": r"blocks.\1.mlp.\2.\3",
            r"post_layernorm\.(.*)": r"norm.\1",
            r"head\.probe": "attn_pool.latent",
            r"head\.attention\.in_proj_(.*)": r"attn_pool.qkv.\1",
            r"head\.attention\.out_proj\.(.*)": r"attn_pool.proj.\1",
            r"head\.layernorm\.(.*)": r"attn_pool.norm.\1",
            r"head\.mlp\.(.*)": r"attn_pool.mlp.\1",
        },
        _finish_siglip,
    ),
)
