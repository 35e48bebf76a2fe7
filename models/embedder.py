"""Build a backbone with an optional linear embedding layer on top."""

from __future__ import annotations

import difflib
from os import PathLike
from typing import Any

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from models.clip import ImageTower, is_clip
from models.weights import load_weights

REFERENCE_MODELS = {
    "ResNet18": "resnet18",
    "ResNet34": "resnet34",
    "ResNet50": "resnet50",
    "ResNet101": "resnet101",
    "ResNet152": "resnet152",
    "SE_ResNeXt50_32x4d": "seresnext50_32x4d",
}


class EmbeddingModel(nn.Module):
    """Pooled feature of a backbone, through one linear layer if `embedding_size` > 0.

    Args:
        name: of the model, kept for checkpoints.
        backbone: timm model with `num_classes=0`, or `ImageTower`.
        embedding_size: width of the linear layer; 0 returns the pooled feature itself.

    Attributes:
        feature_size: width of the backbone's pooled feature.
        embedding_size: the actual D.
        mean, std: per-channel normalisation of images in 0..1 that the backbone expects.

    Shape:
        images: (B, 3, H, W) float, normalised with `mean` and `std`.
        returns: (B, D) float, not normalised.
    """

    def __init__(self, name: str, backbone: nn.Module, embedding_size: int = 0):
        super().__init__()
        config: Any = backbone.pretrained_cfg
        feature_size: Any = getattr(backbone, "head_hidden_size", None) or backbone.num_features
        is_reference = name in REFERENCE_MODELS
        self.name = name
        self.feature_size: int = feature_size
        self.embedding_size: int = embedding_size or feature_size
        self.mean = tuple(IMAGENET_DEFAULT_MEAN if is_reference else config["mean"])
        self.std = tuple(IMAGENET_DEFAULT_STD if is_reference else config["std"])
        self.backbone = backbone
        self.embedding: nn.Module = nn.Identity()
        if embedding_size:
            self.embedding = nn.Linear(feature_size, embedding_size)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the embeddings (B, D) of images (B, 3, H, W)."""
        return self.embedding(self.backbone(images))


def build_model(
    name: str,
    embedding_size: int = 0,
    pretrained_model: str | PathLike[str] | None = None,
    *,
    image_size: int | None = None,
) -> EmbeddingModel:
    """Build the named model, with random weights or those of a file.

    Args:
        name: a key of `REFERENCE_MODELS`, any timm model name, or that of an image tower of
            open_clip, see `models.clip.find_clip`.
        embedding_size: width of the linear layer on top; 0 for none.
        pretrained_model: weights to load, see `load_weights`.
        image_size: side of the square images in pixels. Only models built for one size
            (vision transformers) need it; others take any size and do not look at it.

    Raises:
        ValueError: the name is unknown, a size cannot be had, or the weights do not fit.
    """
    if embedding_size < 0:
        raise ValueError(f"embedding_size is 0 (no embedding layer) or more, not {embedding_size}")
    model = EmbeddingModel(name, _build_backbone(name, image_size), embedding_size)
    if pretrained_model is not None:
        load_weights(model, pretrained_model)
    return model


def _timm_name(name: str) -> str:
    """Return the timm name of a reference or timm name; ValueError names close matches."""
    if name in REFERENCE_MODELS:
        return REFERENCE_MODELS[name]
    if timm.is_model(name):
        return name
    known = {model.lower(): model for model in [*timm.list_models(), *REFERENCE_MODELS]}
    close = [known[match] for match in difflib.get_close_matches(name.lower(), known, n=4)]
    hint = f"close to it: {', '.join(close)}; " if close else ""
    raise ValueError(
        f"unknown model {name}; {hint}expected {', '.join(REFERENCE_MODELS)}, a timm model name "
        "or open_clip:NAME"
    )


def _build_backbone(name: str, image_size: int | None) -> nn.Module:
    """Build the model of a name without a class layer."""
    if is_clip(name):
        return ImageTower(name, image_size)
    timm_name = _timm_name(name)
    options: dict[str, Any] = {}
    try:
        config = timm.get_pretrained_cfg(timm_name)
        if image_size is not None and config is not None and config.fixed_input_size:
            options["img_size"] = image_size
        return timm.create_model(timm_name, pretrained=False, num_classes=0, **options)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        size = f" for images of {image_size} px" if options else ""
        reason = " ".join(str(error).split())
        raise ValueError(f"cannot build model {name}{size}: {reason}") from error
