"""Which weights of a network train; the others keep every bit."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from metric_learning.models.embedder import EmbeddingModel
from metric_learning.models.pooling import GeMPooling


def choose_trainable(model: EmbeddingModel, trainable: str) -> None:
    """Let weights of the backbone require no gradient, as --trainable says.

    "norm" leaves it to the weights of normalisation layers and to the pooling, "head" to none;
    "all" changes nothing. What lies behind the backbone is not concerned.

    Raises ValueError where "norm" leaves no weight of the backbone.
    """
    if trainable == "all":
        return
    kept = list(_norm_weights(model.backbone)) if trainable == "norm" else []
    if trainable == "norm" and not kept:
        raise ValueError(
            f"--trainable=norm: {model.name} has no normalisation layer with weights: choose "
            "all or head"
        )
    model.backbone.requires_grad_(False)
    for parameter in kept:
        parameter.requires_grad_(True)


def _norm_weights(backbone: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the weights of layers that normalise, which say so by their names, and of the pooling.

    So they do in torch, timm and open_clip, which have some forty kinds of them.
    """
    for module in backbone.modules():
        if "norm" in type(module).__name__.lower() or isinstance(module, GeMPooling):
            yield from (p for p in module.parameters(recurse=False) if p.requires_grad)
