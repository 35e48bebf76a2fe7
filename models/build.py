"""Build a model by its name."""

from __future__ import annotations

import difflib
from os import PathLike
from typing import Any

import timm
from timm.layers.drop import DropPath
from torch import nn

from metric_learning.common.sizes import Size, sides, size_text
from metric_learning.models.clip import ImageTower, find_clip, is_clip
from metric_learning.models.embedder import REFERENCE_IMAGE_SIZE, REFERENCE_MODELS, EmbeddingModel
from metric_learning.models.weights.load import load_weights

# All names that are not timm's own. This Xception is Chollet's, timm's other ones are DeepLab's.
TIMM_NAMES = REFERENCE_MODELS | {"Xception": "legacy_xception"}


def build_model(
    name: str,
    embedding_size: int = 0,
    pretrained_model: str | PathLike[str] | None = None,
    *,
    image_size: Size | None = None,
    pooling: str = "own",
    last_stride: int = 2,
    feature_norm: str = "none",
    drop_path: float = 0.0,
) -> EmbeddingModel:
    """Build the named model, with random weights or those of a file.

    Args:
        name: a key of `TIMM_NAMES`, any timm model name, or that of an image tower of open_clip,
            see `models.clip.find_clip`.
        embedding_size: width of the linear layer on top; 0 for none.
        pretrained_model: weights to load, see `load_weights`.
        image_size: side of the images in pixels, or height and width; None for those of the
            published weights. Models built for one size (vision transformers) are built for this
            one; others take any size and do not look at it.
        pooling: how a feature map becomes a feature, a key of `POOLINGS`; "own" leaves it to
            the backbone, an average in nearly all convolutional ones.
        last_stride: 1 doubles the sides of a ResNet's feature map; 2 leaves it as it is.
        feature_norm: layer between pooling and linear layer, a key of `FEATURE_NORMS`.
        drop_path: stochastic depth in training (Huang et al. 2016,
            https://arxiv.org/abs/1603.09382): chance with which the last block of a timm model is
            left out, less for those before it; 0 for none.

    Raises:
        ValueError: the name is unknown, a size or an option cannot be had, or the weights do not
            fit.
    """
    if embedding_size < 0:
        raise ValueError(f"embedding_size is 0 (no embedding layer) or more, not {embedding_size}")
    backbone = _build_backbone(name, image_size, drop_path)
    if drop_path and not any(isinstance(module, DropPath) for module in backbone.modules()):
        raise ValueError(f"--drop_path is not used: {name} has no blocks that it could leave out")
    options = {"pooling": pooling, "last_stride": last_stride, "feature_norm": feature_norm}
    model = EmbeddingModel(name, backbone, embedding_size, image_size, **options)
    if pretrained_model is not None:
        load_weights(model, pretrained_model)
    return model


def image_size_of(name: str) -> tuple[int, int]:
    """Return the height and width of the images that the published weights of a model take.

    Raises:
        ValueError: the name is unknown.
    """
    if name in REFERENCE_MODELS:
        return sides(REFERENCE_IMAGE_SIZE)
    if is_clip(name):
        return find_clip(name).image_size
    config: Any = timm.get_pretrained_cfg(timm_name(name))
    height, width = config.input_size[1:]
    return int(height), int(width)


def timm_name(name: str) -> str:
    """Return timm's name of a model; ValueError names close matches."""
    if name in TIMM_NAMES:
        return TIMM_NAMES[name]
    if timm.is_model(name):
        return name
    known = {model.lower(): model for model in [*timm.list_models(), *TIMM_NAMES]}
    close = [known[match] for match in difflib.get_close_matches(name.lower(), known, n=4)]
    hint = f"close to it: {', '.join(close)}; " if close else ""
    raise ValueError(
        f"unknown model {name}; {hint}expected {', '.join(TIMM_NAMES)}, a timm model name, "
        "open_clip:NAME, hf-hub:ORG/NAME or a folder that is there"
    )


def _build_backbone(name: str, image_size: Size | None, drop_path: float) -> nn.Module:
    """Build the model of a name without a class layer."""
    if is_clip(name):
        return ImageTower(name, image_size)
    architecture = timm_name(name)
    options: dict[str, Any] = {}
    try:
        config: Any = timm.get_pretrained_cfg(architecture)
        # Models that can be had in their own size alone know no such option.
        size = None if image_size is None else sides(image_size)
        if config and config.fixed_input_size and size not in (None, tuple(config.input_size[1:])):
            options["img_size"] = size
        if drop_path:
            options["drop_path_rate"] = drop_path

        return timm.create_model(architecture, pretrained=False, num_classes=0, **options)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        at = f" for images of {size_text(options['img_size'])}" if "img_size" in options else ""
        reason = " ".join(str(error).split())
        raise ValueError(f"cannot build model {name}{at}: {reason}") from error
