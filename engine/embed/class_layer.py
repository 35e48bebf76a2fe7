"""The class layer of a weights file: that of its training, or a classifier from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from metric_learning.engine.run.checkpoints import load_checkpoint
from metric_learning.losses import ELEM_LOSSES, build_loss
from metric_learning.losses.softmaxloss import SoftmaxLoss
from metric_learning.models import EmbeddingModel, load_classifier
from metric_learning.models.weights.files import identify
from metric_learning.models.weights.fingerprint import RANDOM


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
