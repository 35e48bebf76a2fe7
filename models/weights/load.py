"""Load weights of any supported form into a model, and save them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from timm.layers.pos_embed import resample_abs_pos_embed

from metric_learning.common.atomic import write_atomically
from metric_learning.models.clip import NEITHER_PARTS, OPENAI_PARTS, PREFIX, TEXT_PARTS, ImageTower
from metric_learning.models.embedder import EmbeddingModel
from metric_learning.models.options import changed_options, options_of
from metric_learning.models.weights import paddle
from metric_learning.models.weights.files import WeightsFile, identify, read_weights

PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.")
CLASSIFIERS = ("fc", "classifier", "head", "heads", "head_dist", "last_linear", "logits")
POSITIONS = ("positional_embedding", "pos_embed")  # how open_clip's and timm's names of them end
CLASSIFIER_PARTS = {"weight": "bias", "w_0": "b_0"}  # of a linear layer: torch's, Paddle's


@dataclass(frozen=True)
class WeightsReport:
    """The outcome of `load_weights`."""

    loaded: list[str]  # the model's keys that were filled
    missing: list[str]  # the model's keys that the file lacks: none but those of `new_parts`
    # the file's keys that were left out: class layers, loss heads, text towers
    unexpected: list[str]
    source: str  # the form of the file, for people


def load_weights(model: EmbeddingModel, path: str | PathLike[str]) -> WeightsReport:
    """Load a weights file into a model; the model is changed only if everything fits.

    Reads this project's checkpoints, torch state dicts (plain or under a usual key, with or
    without wrapper prefixes; so torchvision's ResNets, timm's models and both towers of
    open_clip's), .safetensors and Paddle's two forms. The absolute position
    embedding of a vision transformer is resampled to the model's image size.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no weights, or those of another model.
    """
    file = read_weights(path)
    tensors = _named_tensors(model, file)
    own = model.state_dict()

    # Find the place of each tensor in the model.
    matched: dict[str, torch.Tensor] = {}
    unexpected: dict[str, str] = {}  # bare key -> the file's key
    for key, tensor in tensors.items():
        target = _normalise(key, own)
        if target in matched or target in unexpected:
            raise ValueError(f"{file.path}: holds {target} twice; keep one model's weights in it")
        if target in own:
            matched[target] = tensor
        elif not target.endswith("num_batches_tracked"):
            unexpected[target] = key
    _resample_positions(model, matched)
    missing = [k for k in own if k not in matched and not k.endswith("num_batches_tracked")]

    # Load all of them, or none.
    _check_embedding(model, file, matched, tensors, unexpected)
    _check_options(model, file)
    _check_activation(model, file)
    _check_backbone(model, file, matched, missing, unexpected)
    model.load_state_dict(matched, strict=False)
    return WeightsReport(list(matched), missing, list(unexpected.values()), file.source)


@dataclass(frozen=True)
class Classifier:
    """A linear class layer on the embedding, as image classifiers end with."""

    weight: torch.Tensor  # (C, D) float32
    bias: torch.Tensor  # (C,) float32


def load_classifier(model: EmbeddingModel, path: str | PathLike[str]) -> Classifier | None:
    """Read the class layer that weights of others hold beside those of a model.

    None where the file has none, or it does not take the model's embeddings: those of a head with
    options are not the ones it was trained on. ValueError if there are several.
    """
    if changed_options(model.options):
        return None
    file = read_weights(path)
    own = model.state_dict()
    tensors = _named_tensors(model, file).items()
    named = {_normalise(key, own): tensor for key, tensor in tensors}

    found: dict[str, Classifier] = {}
    for key, tensor in named.items():
        layer, _, part = key.rpartition(".")
        if key in own or part not in CLASSIFIER_PARTS or not _is_classifier(key, model):
            continue
        weight = tensor.T if part == "w_0" else tensor
        if weight.ndim < 2 or weight[0].numel() != model.embedding_size:
            continue
        weight = weight.flatten(1).float()
        bias = named.get(f"{layer}.{CLASSIFIER_PARTS[part]}", torch.zeros(len(weight)))
        found[layer] = Classifier(weight, bias.float())

    if len(found) > 1:
        raise ValueError(
            f"{file.path}: holds the class layers {', '.join(found)}, expected one: leave "
            "--class_dim out"
        )
    return next(iter(found.values()), None)


def save_weights(
    model: EmbeddingModel, path: str | PathLike[str], metadata: dict[str, Any]
) -> None:
    """Write a .safetensors file atomically, with JSON-like facts that rebuild the model."""
    tensors = {
        key: tensor.detach().cpu().contiguous().clone()
        for key, tensor in model.state_dict().items()
    }
    data = save(tensors, {"format": "pt", "metadata": json.dumps(metadata)})
    write_atomically(Path(path), lambda temporary: temporary.write_bytes(data))


def read_metadata(path: str | PathLike[str]) -> dict[str, Any] | None:
    """Return the facts that this project wrote beside the weights; None for files of others."""
    path, source = identify(path)
    return None if source.startswith("paddle") else read_weights(path).metadata


def _named_tensors(model: EmbeddingModel, file: WeightsFile) -> dict[str, torch.Tensor]:
    """Return a file's tensors by name; Paddle's get the names of this project."""
    if not file.arrays:
        return file.tensors

    if model.name not in paddle.PADDLE_MODELS:
        raise ValueError(
            f"{file.path}: Paddle weights are not supported for {model.name}, only for "
            f"{', '.join(paddle.PADDLE_MODELS)}; give torch or .safetensors weights"
        )
    is_basic = "res2a_branch2c_weights" not in file.arrays
    if is_basic and "res2a_branch1_weights" in file.arrays:
        raise ValueError(
            f"{file.path}: Paddle's ResNet18 and 34 have a convolution in their first shortcut "
            "(res2a_branch1), torch's have none; give torch or .safetensors weights"
        )
    embedding_size = 0 if _has_no_embedding(model) else model.embedding_size
    return paddle.to_state_dict(file.arrays, model.feature_size, embedding_size)


def _has_no_embedding(model: EmbeddingModel) -> bool:
    return isinstance(model.embedding, torch.nn.Identity)


def _normalise(key: str, own: dict[str, torch.Tensor]) -> str:
    """Return the model's name of a file's key, or the key without wrapper prefixes."""
    while True:
        for target in (key, f"backbone.{key}"):
            if target in own:
                return target
        prefix = next((prefix for prefix in PREFIXES if key.startswith(prefix)), None)
        if prefix is None:
            return key
        key = key.removeprefix(prefix)


def _resample_positions(model: EmbeddingModel, matched: dict[str, torch.Tensor]) -> None:
    """Fit position embeddings, (N, D) or (1, N, D), of weights trained at another image size."""
    for name, own in model.state_dict().items():
        positions = matched.get(name)
        if positions is None or not name.endswith(POSITIONS):
            continue
        if positions.ndim != own.ndim or own.ndim not in (2, 3):
            continue

        side = math.isqrt(own.shape[-2])
        num_prefix = own.shape[-2] - side**2  # 1 with a class token
        num_patches = max(positions.shape[-2] - num_prefix, 0)
        is_grid = math.isqrt(num_patches) ** 2 == num_patches > 0
        if is_grid and positions.shape[-1] == own.shape[-1]:
            grid = positions.reshape(1, *positions.shape[-2:])
            grid = resample_abs_pos_embed(grid, [side, side], num_prefix_tokens=num_prefix)
            matched[name] = grid.reshape(own.shape)


def _check_embedding(
    model: EmbeddingModel,
    file: WeightsFile,
    matched: dict[str, torch.Tensor],
    tensors: dict[str, torch.Tensor],
    unexpected: dict[str, str],
) -> None:
    """Refuse an embedding layer of the file that the model lacks or has in another size."""
    weight = matched.get("embedding.weight")
    if "embedding.weight" in unexpected:
        weight = tensors[unexpected["embedding.weight"]]
    if weight is None:
        return
    size = weight.shape[0] if weight.ndim else 0
    if _has_no_embedding(model) or size != model.embedding_size:
        own = "none" if _has_no_embedding(model) else f"one of {model.embedding_size}"
        raise ValueError(
            f"{file.path}: holds an embedding layer of size {size}, the model has {own}; "
            f"pass --embedding_size={size}"
        )


def _check_activation(model: EmbeddingModel, file: WeightsFile) -> None:
    """Refuse OpenAI's weights for an image tower that has another activation than theirs."""
    tower = model.backbone
    is_openai = set(OPENAI_PARTS) <= set(file.tensors)
    if isinstance(tower, ImageTower) and is_openai and not tower.quick_gelu:
        raise ValueError(
            f"{file.path}: OpenAI's weights need quick GELU: add .openai to the name of the model, "
            f"as in --model={PREFIX}ViT-B-32.openai"
        )


def _check_options(model: EmbeddingModel, file: WeightsFile) -> None:
    """Refuse weights that were trained with an option that the model lacks or has otherwise."""
    for name, value in changed_options(options_of(file.metadata or {})).items():
        own = model.options[name]
        if own != value:
            raise ValueError(
                f"{file.path}: these weights were trained with --{name}={value}, the model has "
                f"--{name}={own}; pass --{name}={value}"
            )


def _check_backbone(
    model: EmbeddingModel,
    file: WeightsFile,
    matched: dict[str, torch.Tensor],
    missing: list[str],
    unexpected: dict[str, str],
) -> None:
    """Refuse weights that do not fill the backbone, fill a new part by half, or fill more."""
    own = model.state_dict()
    empty = tuple(
        f"{path}."
        for path in model.new_parts()
        if not any(key.startswith(f"{path}.") for key in matched)
    )

    needed = [key for key in missing if not key.startswith(empty)]
    strange = [key for bare, key in unexpected.items() if not _may_be_left_out(bare, model)]
    misfits = [
        f"{key} {tuple(tensor.shape)} for {tuple(own[key].shape)}"
        for key, tensor in matched.items()
        if tensor.shape != own[key].shape
        or tensor.is_floating_point() != own[key].is_floating_point()
    ]
    problems = {"missing": needed, "unexpected": strange, "of another shape or type": misfits}
    found = [f"{len(keys)} {what} ({first_keys(keys)})" for what, keys in problems.items() if keys]
    if not found:
        return

    name = (file.metadata or {}).get("model")
    hint = f"pass --model={name}" if name and name != model.name else "check --model"
    if "logit_scale" in unexpected and not isinstance(model.backbone, ImageTower):
        hint = f"weights of CLIP's two towers need --model={PREFIX}NAME"
    raise ValueError(
        f"{file.path}: these look like weights of another model than {model.name}: "
        f"{', '.join(found)}; {hint}"
    )


def first_keys(keys: list[str], limit: int = 5) -> str:
    """Join the first keys, with dots where there are more."""
    return ", ".join([*keys[:limit], *["..."] * (len(keys) > limit)])


def _may_be_left_out(key: str, model: EmbeddingModel) -> bool:
    """Tell whether a key without prefixes belongs to something beside the backbone."""
    is_clip = isinstance(model.backbone, ImageTower)
    is_beside_images = key.partition(".")[0] in (*TEXT_PARTS, *NEITHER_PARTS)
    return _is_classifier(key, model) or (is_clip and is_beside_images)


def _is_classifier(key: str, model: EmbeddingModel) -> bool:
    """Tell whether a key without prefixes belongs to a class layer or a loss."""
    config: Any = model.backbone.pretrained_cfg
    own = config.get("classifier") or ()
    names = (*CLASSIFIERS, *([own] if isinstance(own, str) else own))
    return paddle.is_head(key) or key.startswith(tuple(f"{name}." for name in names))
