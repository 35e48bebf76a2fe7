"""The class layer of a weights file: that of its training, or a classifier from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metric_learning.engine.options.parts import ClassLayer
from metric_learning.engine.options.training_table import DERIVED_OPTIONS
from metric_learning.engine.run.checkpoints import load_checkpoint
from metric_learning.losses import ELEM_LOSSES, build_loss
from metric_learning.losses.softmaxloss import SoftmaxLoss
from metric_learning.models import EmbeddingModel, load_classifier, read_metadata
from metric_learning.models.weights.files import BARE, identify
from metric_learning.models.weights.fingerprint import RANDOM

ROWS_AT_ONCE = 1024  # of the matrix of all classes by all


def load_class_layer(
    path: str, meta: Mapping[str, Any], model: EmbeddingModel, class_dim: int | None
) -> nn.Module | None:
    """Load the class layer of a weights file as a stage-1 loss in evaluation mode, or None.

    It is that of the training that `meta` tells of, or a classifier from elsewhere, for which
    `class_dim` has to be given. Raises ValueError where there is none of that size.
    """
    if "loss" in meta:
        layer = _layer_of_training(path, meta, model.embedding_size)
    else:
        layer = _layer_from_elsewhere(path, model) if class_dim and path != RANDOM else None
    found = 0 if layer is None else len(layer.weight)
    if class_dim not in (None, found):
        has = f"a class layer of {found} classes" if found else "no class layer on its embedding"
        raise ValueError(f"--class_dim={class_dim}, but {path} has {has}: leave the flag out")
    return layer and layer.eval()  # one with a state, such as a running scale, does not change it


def find_nearest_classes(path: str, names: Sequence[str], count: int) -> np.ndarray:
    """Find the classes nearest to each one by the cosines of the class weights of a checkpoint.

    (C, count) int32, nearest first, by the place of a class among the names; where a class has
    several weights, by their mean direction. Ties go by the place. Raises ValueError where the file
    has no class weights, or none of some of the classes.
    """
    meta = {} if path == RANDOM else read_metadata(path) or {}
    layer = _layer_of_training(path, meta) if "loss" in meta else None
    if layer is None:
        raise ValueError(
            f"--hard_classes: {path} has no class weights, which say what classes are near: give "
            "a checkpoint of stage 1 (last.pt or best.pt, not safetensors)"
        )
    row_of = {name: row for row, name in enumerate(meta.get("class_names", ()))}
    missing = [name for name in names if name not in row_of]
    if missing:
        raise ValueError(
            f"--hard_classes: {path} was trained without class {missing[0]} ({len(missing)} of "
            f"{len(names)}): give a checkpoint of stage 1 on the same classes"
        )

    with torch.no_grad():
        weights = F.normalize(layer.weight[[row_of[name] for name in names]].float(), dim=-1)
        centres = F.normalize(weights.mean(1) if weights.ndim == 3 else weights)  # CxD
        parts = []
        for start in range(0, len(names), ROWS_AT_ONCE):
            cosines = centres[start : start + ROWS_AT_ONCE] @ centres.T
            own = torch.arange(len(cosines))
            cosines[own, start + own] = -torch.inf
            order = torch.sort(cosines, dim=1, descending=True, stable=True).indices
            parts.append(order[:, :count].to(torch.int32))
    return torch.cat(parts).numpy()


def _layer_of_training(
    path: str, meta: Mapping[str, Any], embedding_size: int | None = None
) -> Any:
    """Load the stage-1 loss of a checkpoint, or the class layer of its joint loss, if any.

    ValueError where it is not for embeddings of the size, if that is given.
    """
    found = None if identify(path)[1] in BARE else describe_layer(meta)
    if found is None:  # or weights of the network alone
        return None
    state = class_weights(path)
    weight = main_weight(state)
    try:
        layer = build_layer(found, len(weight), embedding_size or weight.shape[-1])
        layer.load_state_dict(state)
    except (TypeError, KeyError, AttributeError, ValueError, RuntimeError) as error:
        raise _not_as_told(path, error) from error
    return layer


def describe_layer(meta: Mapping[str, Any]) -> ClassLayer | None:
    """Return the loss whose class weights the checkpoint of a training has, by its `meta`, if any.

    A loss of one's own is none, for no file may name a module to run.
    """
    flags = meta.get("flags", {})
    if meta["loss"] in ELEM_LOSSES:
        return ClassLayer(meta["loss"], _without_derived(meta.get("loss_options", {})))
    if "kept_loss" in meta:
        kept = meta["kept_loss"]
        return ClassLayer(kept["loss"], kept["options"]) if kept["loss"] in ELEM_LOSSES else None
    if flags.get("alpha"):
        return ClassLayer("softmax", {"class_dropout": flags.get("class_dropout") or 0.0})
    return None


def _without_derived(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in DERIVED_OPTIONS}


def build_layer(layer: ClassLayer, class_dim: int, embedding_size: int) -> nn.Module:
    """Build a stage-1 loss with new weights; ValueError where its options are not its own."""
    derived = dict(zip(DERIVED_OPTIONS, (class_dim, embedding_size), strict=True))
    return build_loss(layer.loss_name, **layer.options, **derived)


def class_weights(path: str) -> dict[str, Tensor]:
    """Return the state of the class layer in a training checkpoint, whatever lies around it."""
    checkpoint = load_checkpoint(identify(path)[0])
    prefix = "" if checkpoint["meta"]["loss"] in ELEM_LOSSES else "class_layer."
    state = checkpoint["criterion"]
    return {key.removeprefix(prefix): state[key] for key in state if key.startswith(prefix)}


def main_weight(state: Mapping[str, Tensor]) -> Tensor:
    """Return the class weights (C, D) or (C, K, D) in the state of a stage-1 loss, or (0, 1)."""
    names = [name for name in state if name.rpartition(".")[2] == "weight"]
    return state[names[0]] if names else torch.empty(0, 1)


def take_class_weights(layer: nn.Module, path: str) -> None:
    """Give a class layer the weights of a checkpoint; ValueError where they do not fit."""
    state = class_weights(path)
    own, found = main_weight(layer.state_dict()), main_weight(state)
    if own.shape != found.shape:
        raise ValueError(
            f"--keep_loss: the class weights of {path} are {tuple(found.shape)}, the embeddings "
            f"take {tuple(own.shape)}: leave the flags of the model out"
        )
    try:
        layer.load_state_dict(state)
    except RuntimeError as error:
        raise _not_as_told(path, error) from error


def _not_as_told(path: str, error: Exception) -> ValueError:
    reason = str(error).partition("\n")[0][:120]
    return ValueError(
        f"{path}: its class layer is not what the file says of it ({reason}): choose another "
        "checkpoint of the run"
    )


def _layer_from_elsewhere(path: str, model: EmbeddingModel) -> SoftmaxLoss | None:
    """Load the classifier that weights from elsewhere have on the embedding, if any."""
    found = load_classifier(model, path)
    if found is None:
        return None
    layer = SoftmaxLoss(*found.weight.shape)
    layer.load_state_dict({"weight": found.weight, "bias": found.bias})
    return layer
