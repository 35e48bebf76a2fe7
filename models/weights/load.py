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
from metric_learning.common.schema import is_count, is_list_of
from metric_learning.models.clip import NEITHER_PARTS, OPENAI_PARTS, PREFIX, TEXT_PARTS, ImageTower
from metric_learning.models.embedder import EmbeddingModel
from metric_learning.models.lora import merged_state
from metric_learning.models.options import changed_options, options_of
from metric_learning.models.weights import checksum, paddle
from metric_learning.models.weights.files import WeightsFile, read_weights
from metric_learning.models.weights.groups import Group
from metric_learning.models.weights.match import (
    BACKBONE,
    COUNTERS,
    POSITIONS,
    Place,
    find_place,
    is_usable,
)
from metric_learning.models.weights.transformers_names import to_timm

CLASSIFIERS = ("fc", "classifier", "head", "heads", "head_dist", "last_linear", "logits")
EMBEDDING = "embedding.weight"
CLASSIFIER_PARTS = {"weight": "bias", "w_0": "b_0"}  # of a linear layer: torch's, Paddle's


@dataclass(frozen=True)
class WeightsReport:
    """The outcome of `load_weights`."""

    loaded: list[str]  # the model's keys that were filled
    missing: list[str]  # the model's keys that the file lacks: none but those of `new_parts`
    # the file's keys that were left out: class layers, loss heads, text towers, metrics, teachers
    unexpected: list[str]
    source: str  # the form of the file, for people
    place: str = ""  # where in a file of others the network lies, such as state_dict.teacher

    @property
    def remarks(self) -> str:
        """What a line about it ends with: where they lay, and what of the file was left out."""
        rest, place = self.unexpected, self.place and f" from {self.place}"
        return place + (f", {len(rest)} left out: {first_keys(rest)}" if rest else "")


def load_weights(model: EmbeddingModel, path: str | PathLike[str]) -> WeightsReport:
    """Load a weights file into a model; the model is changed only if the whole backbone fits.

    Reads this project's checkpoints, what torch.save wrote of others (state dicts, checkpoints of
    trainers, pickled modules), .safetensors and Paddle's two forms; the backbone is found in them
    wherever it lies, see `match.find_place`. What else they hold is left out and listed.
    `FILE::PART` chooses one of several networks. The absolute position embedding of a vision
    transformer is resampled to the model's image size.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no weights, those of another model, or several that fit.
    """
    file = read_weights(path)
    place = find_place(model, file, _named_groups(model, file))
    own = model.state_dict()

    # The file's tensor of each of the model.
    keys = {name: place.key_of(name) for name in own}
    matched = {name: place.tensors[key] for name, key in keys.items() if key in place.tensors}
    _drop_strange_embedding(model, matched)
    missing = [key for key in own if key not in matched and not key.endswith(COUNTERS)]
    used = {keys[name] for name in matched}
    left_out = [key for key in place.tensors if key not in used and not key.endswith(COUNTERS)]
    _resample_positions(model, matched, _trained_size(file.metadata or {}))

    # Load all of them, or none.
    _check_embedding(model, file, place)
    _check_options(model, file)
    _check_activation(model, file)
    _check_backbone(model, file, place, matched, missing, left_out)
    model.load_state_dict(matched, strict=False)
    model.take_norm(file.metadata or {})
    where = place.name if file.metadata is None else ""
    return WeightsReport(list(matched), missing, left_out, file.source, where)


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
    place = find_place(model, file, _named_groups(model, file))
    own = {place.key_of(name) for name in model.state_dict()}
    named = {place.bare(key): place.tensors[key] for key in place.tensors if key not in own}

    found: dict[str, Classifier] = {}
    for key, tensor in named.items():
        layer, _, part = key.rpartition(".")
        if part not in CLASSIFIER_PARTS or not _is_classifier(key, model):
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
    """Write a .safetensors file atomically, with JSON-like facts that rebuild the model.

    Adapters are merged into the weights that they lie beside.
    """
    tensors = {
        key: tensor.detach().cpu().contiguous().clone()
        for key, tensor in merged_state(model).items()
    }
    texts = {"format": "pt", "metadata": json.dumps(metadata), checksum.NAME: checksum.ZEROS}
    data = checksum.with_checksum(save(tensors, texts))
    write_atomically(Path(path), lambda temporary: temporary.write_bytes(data))


def _named_groups(model: EmbeddingModel, file: WeightsFile) -> dict[str, Group]:
    """Return a file's tensors by place and name; Paddle's get the names of this project."""
    if not file.arrays:
        wanted = {key.removeprefix(BACKBONE) for key in model.state_dict()}
        return {name: to_timm(group, wanted) for name, group in file.groups.items()}

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
    return {"": paddle.to_state_dict(file.arrays, model.feature_size, embedding_size)}


def _has_no_embedding(model: EmbeddingModel) -> bool:
    return isinstance(model.embedding, torch.nn.Identity)


def _trained_size(metadata: dict[str, Any]) -> tuple[int, int]:
    """Return the size of the images that weights of ours were trained on; a square of others."""
    shape = metadata.get("flags", metadata).get("image_shape")
    is_known = is_list_of(is_count)(shape) and len(shape) == 3
    return (int(shape[1]), int(shape[2])) if is_known else (1, 1)


def _grid_of(num_tokens: int, image_size: tuple[int, int]) -> tuple[int, int]:
    """Return the largest grid of square patches in images of a size that so many tokens hold."""
    height, width = image_size
    if height == width:
        return math.isqrt(num_tokens), math.isqrt(num_tokens)
    grids = ((height // patch, width // patch) for patch in range(1, min(image_size) + 1))
    return next((grid for grid in grids if math.prod(grid) <= num_tokens), (0, 0))


def _resample_positions(
    model: EmbeddingModel, matched: dict[str, torch.Tensor], trained_size: tuple[int, int]
) -> None:
    """Fit position embeddings, (N, D) or (1, N, D), of weights trained at another image size."""
    for name, own in model.state_dict().items():
        positions = matched.get(name)
        if positions is None or not name.endswith(POSITIONS) or not positions.is_floating_point():
            continue
        if positions.ndim != own.ndim or own.ndim not in (2, 3):
            continue

        new_grid = _grid_of(own.shape[-2], model.image_size)
        num_prefix = own.shape[-2] - math.prod(new_grid)  # 1 with a class token
        num_patches = max(positions.shape[-2] - num_prefix, 0)
        old_grid = _grid_of(num_patches, trained_size)
        is_grid = math.prod(old_grid) == num_patches > 0
        if is_grid and positions.shape[-1] == own.shape[-1]:
            fitted = resample_abs_pos_embed(
                positions.reshape(1, *positions.shape[-2:]),
                [*new_grid],
                [*old_grid],
                num_prefix_tokens=num_prefix,
            )
            matched[name] = fitted.reshape(own.shape)


def _drop_strange_embedding(model: EmbeddingModel, matched: dict[str, torch.Tensor]) -> None:
    """Leave out a layer of others that is called embedding, but is none on the feature."""
    weight = matched.get(EMBEDDING)
    if weight is not None and (weight.ndim != 2 or weight.shape[1] != model.feature_size):
        for name in [name for name in matched if name.startswith("embedding.")]:
            del matched[name]


def _check_embedding(model: EmbeddingModel, file: WeightsFile, place: Place) -> None:
    """Refuse an embedding layer of the file that the model lacks or has in another size."""
    weight = place.tensors.get(place.key_of(EMBEDDING))
    if weight is None or weight.ndim != 2 or weight.shape[1] != model.feature_size:
        return
    size = len(weight)
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
    place: Place,
    matched: Group,
    missing: list[str],
    left_out: list[str],
) -> None:
    """Refuse weights that do not fill the backbone, fill a new part by half, or fill more."""
    own = model.state_dict()
    empty = tuple(
        f"{path}."
        for path in model.new_parts()
        if not any(key.startswith(f"{path}.") for key in matched)
    )

    needed = [key for key in missing if not key.startswith(empty)]
    odd = {place.key_of(key): key for key in needed}
    odd = {name: key for key, name in odd.items() if _name_in(place, key) in file.oddities}
    misfits = [
        f"{key} {describe(tensor)} for {describe(own[key])}"
        for key, tensor in matched.items()
        if not is_usable(tensor, own[key])
    ]
    misfits += [f"{key} {file.oddities[_name_in(place, place.key_of(key))]}" for key in odd]
    problems = {
        "missing": [key for key in needed if key not in odd],
        "unexpected": [key for key in left_out if _is_inside(key, place, model)],
        "of another shape or type": misfits,
    }
    found = [f"{len(keys)} {what} ({first_keys(keys)})" for what, keys in problems.items() if keys]
    if not found:
        return

    name = (file.metadata or {}).get("model")
    hint = f"pass --model={name}" if name and name != model.name else "check --model"
    is_clip = any(place.bare(key) == "logit_scale" for key in left_out)
    if is_clip and not isinstance(model.backbone, ImageTower):
        hint = f"weights of CLIP's two towers need --model={PREFIX}NAME"
    raise ValueError(
        f"{file.path}: these look like weights of another model than {model.name}: "
        f"{', '.join(found)}; {hint}"
    )


def _name_in(place: Place, key: str) -> str:
    return f"{place.group}.{key}" if place.group else key


def describe(tensor: torch.Tensor) -> str:
    """Return shape and type of a tensor in words; float32 goes without saying."""
    kind = "" if tensor.dtype == torch.float32 else f" {str(tensor.dtype).removeprefix('torch.')}"
    return f"{tuple(tensor.shape)}{kind}"


def first_keys(keys: list[str], limit: int = 5) -> str:
    """Join the first keys, with dots where there are more."""
    return ", ".join([*keys[:limit], *["..."] * (len(keys) > limit)])


def _is_inside(key: str, place: Place, model: EmbeddingModel) -> bool:
    """Tell whether a key that was left out is within a part of the backbone.

    There it is a layer that this model lacks, so that others would compute something else without
    it: another depth, another kind of block. Beside the backbone may be anything.
    """
    if not key.startswith(place.prefix):
        return False
    part, dot, _ = key.removeprefix(place.prefix).partition(".")
    is_clip = isinstance(model.backbone, ImageTower)
    is_beside_images = is_clip and part in (*TEXT_PARTS, *NEITHER_PARTS)
    parts = {name.split(".")[1] for name in model.state_dict() if name.startswith(BACKBONE)}
    is_part = bool(dot) and part in parts
    return is_part and not is_beside_images and not _is_classifier(place.bare(key), model)


def _is_classifier(key: str, model: EmbeddingModel) -> bool:
    """Tell whether a key without prefixes belongs to a class layer or a loss."""
    config: Any = model.backbone.pretrained_cfg
    own = config.get("classifier") or ()
    names = (*CLASSIFIERS, *([own] if isinstance(own, str) else own))
    return paddle.is_head(key) or key.startswith(tuple(f"{name}." for name in names))
