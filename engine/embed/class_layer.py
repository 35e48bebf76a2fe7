"""The class layer of a weights file: that of its training, or a classifier from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from metric_learning.engine.run.checkpoints import load_checkpoint
from metric_learning.losses import ELEM_LOSSES, build_loss
from metric_learning.losses.softmaxloss import SoftmaxLoss
from metric_learning.models import EmbeddingModel, load_classifier, read_metadata
from metric_learning.models.weights.files import identify
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
    layer = _layer_of_training(path, meta, meta["embedding_size"]) if "loss" in meta else None
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


def _layer_of_training(path: str, meta: Mapping[str, Any], embedding_size: int) -> Any:
    """Load the stage-1 loss of a checkpoint, or the class layer of its joint loss, if any."""
    file, form = identify(path)
    if form == "safetensors":  # weights of the network alone
        return None
    is_joint = meta["loss"] not in ELEM_LOSSES
    if is_joint and not meta.get("flags", {}).get("alpha"):
        return None

    prefix = "class_layer." if is_joint else ""
    state = load_checkpoint(file)["criterion"]
    state = {key.removeprefix(prefix): state[key] for key in state if key.startswith(prefix)}
    try:
        if is_joint:
            layer: nn.Module = SoftmaxLoss(meta["flags"]["class_dim"], embedding_size)
        else:
            layer = build_loss(meta["loss"], **meta.get("loss_options", {}))
        layer.load_state_dict(state)
    except (TypeError, KeyError, AttributeError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0][:120]
        raise ValueError(
            f"{path}: its class layer is not what the file says of it ({reason}): choose another "
            "checkpoint of the run"
        ) from error
    return layer


def _layer_from_elsewhere(path: str, model: EmbeddingModel) -> SoftmaxLoss | None:
    """Load the classifier that weights from elsewhere have on the embedding, if any."""
    found = load_classifier(model, path)
    if found is None:
        return None
    layer = SoftmaxLoss(*found.weight.shape)
    layer.load_state_dict({"weight": found.weight, "bias": found.bias})
    return layer
