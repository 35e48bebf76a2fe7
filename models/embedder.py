"""Build a backbone, the options of its head and an optional linear embedding layer on top."""

from __future__ import annotations

import difflib
from os import PathLike
from typing import Any

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from models.clip import ImageTower, is_clip
from models.feature_norm import FEATURE_NORMS
from models.last_stride import remove_last_stride
from models.options import MODEL_OPTIONS
from models.pooling import GeMPooling, replace_pooling
from models.weights import load_weights

# Names of the reference; these models take images as the reference prepares them.
REFERENCE_MODELS = {
    "ResNet18": "resnet18",
    "ResNet34": "resnet34",
    "ResNet50": "resnet50",
    "ResNet101": "resnet101",
    "ResNet152": "resnet152",
    "SE_ResNeXt50_32x4d": "seresnext50_32x4d",
}
REFERENCE_IMAGE_SIZE = 224
# All names that are not timm's own. This Xception is Chollet's, timm's other ones are DeepLab's.
TIMM_NAMES = REFERENCE_MODELS | {"Xception": "legacy_xception"}


class EmbeddingModel(nn.Module):
    """Pooled feature of a backbone, normalised, through a linear layer, as the options say.

    Args:
        name: of the model, kept for checkpoints.
        backbone: timm model with `num_classes=0`, or `ImageTower`; its pooling and strides are
            changed in place.
        embedding_size: width of the linear layer; 0 returns the normalised feature itself.
        image_size: side of the images in pixels; None for that of the published weights.
        **options: those of `build_model` that differ from MODEL_OPTIONS.

    Attributes:
        feature_size: width of the backbone's pooled feature.
        embedding_size: the actual D.
        mean, std: per-channel normalisation of images in 0..1 that the backbone expects.
        image_size: side of the images in pixels, never None.
        options: a value per key of MODEL_OPTIONS.

    Shape:
        images: (B, 3, H, W) float, normalised with `mean` and `std`.
        returns: (B, D) float, not normalised.

    Raises:
        ValueError: an option is wrong, or the backbone has no place for it.
    """

    def __init__(
        self,
        name: str,
        backbone: nn.Module,
        embedding_size: int = 0,
        image_size: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        config: Any = backbone.pretrained_cfg
        feature_size: Any = getattr(backbone, "head_hidden_size", None) or backbone.num_features
        is_reference = name in REFERENCE_MODELS
        own_size = REFERENCE_IMAGE_SIZE if is_reference else min(config["input_size"][1:])
        self.name = name
        self.options = MODEL_OPTIONS | options
        self.feature_size: int = feature_size
        self.embedding_size: int = embedding_size or feature_size
        self.mean = tuple(IMAGENET_DEFAULT_MEAN if is_reference else config["mean"])
        self.std = tuple(IMAGENET_DEFAULT_STD if is_reference else config["std"])
        self.image_size: int = image_size or own_size
        _apply_options(backbone, self.options)
        self.backbone = backbone
        self.feature_norm = FEATURE_NORMS[self.options["feature_norm"]](feature_size)
        self.embedding: nn.Module = nn.Identity()
        if embedding_size:
            self.embedding = nn.Linear(feature_size, embedding_size)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the embeddings (B, D) of images (B, 3, H, W)."""
        return self.embedding(self.feature_norm(self.backbone(images)))

    def new_parts(self) -> dict[str, nn.Module]:
        """Return the parts that weights of a backbone alone do not fill, by their paths."""
        return {
            path: part
            for path, part in self.named_modules()
            if isinstance(part, GeMPooling) or part is self.feature_norm or part is self.embedding
        }

    @property
    def head(self) -> nn.Module:
        """All of `new_parts` in one module, for who trains them at another rate."""
        return nn.ModuleList(self.new_parts().values())


def build_model(
    name: str,
    embedding_size: int = 0,
    pretrained_model: str | PathLike[str] | None = None,
    *,
    image_size: int | None = None,
    pooling: str = "own",
    last_stride: int = 2,
    feature_norm: str = "none",
) -> EmbeddingModel:
    """Build the named model, with random weights or those of a file.

    Args:
        name: a key of `TIMM_NAMES`, any timm model name, or that of an image tower of open_clip,
            see `models.clip.find_clip`.
        embedding_size: width of the linear layer on top; 0 for none.
        pretrained_model: weights to load, see `load_weights`.
        image_size: side of the square images in pixels; None for that of the published weights.
            Models built for one size (vision transformers) are built for this one; others take
            any size and do not look at it.
        pooling: what makes a feature of the feature map, a key of `POOLINGS`; "own" leaves it to
            the backbone, an average in nearly all convolutional ones.
        last_stride: 1 doubles the sides of a ResNet's feature map; 2 leaves it as it is.
        feature_norm: what lies between pooling and linear layer, a key of `FEATURE_NORMS`.

    Raises:
        ValueError: the name is unknown, a size or an option cannot be had, or the weights do not
            fit.
    """
    if embedding_size < 0:
        raise ValueError(f"embedding_size is 0 (no embedding layer) or more, not {embedding_size}")
    model = EmbeddingModel(
        name,
        _build_backbone(name, image_size),
        embedding_size,
        image_size,
        pooling=pooling,
        last_stride=last_stride,
        feature_norm=feature_norm,
    )
    if pretrained_model is not None:
        load_weights(model, pretrained_model)
    return model


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
        f"unknown model {name}; {hint}expected {', '.join(TIMM_NAMES)}, a timm model name or "
        "open_clip:NAME"
    )


def _build_backbone(name: str, image_size: int | None) -> nn.Module:
    """Build the model of a name without a class layer."""
    if is_clip(name):
        return ImageTower(name, image_size)
    architecture = timm_name(name)
    options: dict[str, Any] = {}
    try:
        config: Any = timm.get_pretrained_cfg(architecture)
        # Models that can be had in their own size alone know no such option.
        if config and config.fixed_input_size and image_size not in (None, config.input_size[1]):
            options["img_size"] = image_size
        return timm.create_model(architecture, pretrained=False, num_classes=0, **options)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        size = f" for images of {image_size} px" if options else ""
        reason = " ".join(str(error).split())
        raise ValueError(f"cannot build model {name}{size}: {reason}") from error


def _apply_options(backbone: nn.Module, options: dict[str, Any]) -> None:
    """Change pooling and strides of a backbone where the options ask for it."""
    if options["feature_norm"] not in FEATURE_NORMS:
        raise ValueError(
            f"expected --feature_norm={', '.join(FEATURE_NORMS)}, found {options['feature_norm']}"
        )
    if options["last_stride"] not in (1, 2):
        raise ValueError(f"expected --last_stride=1 or 2, found {options['last_stride']}")
    if options["pooling"] != "own":
        replace_pooling(backbone, options["pooling"])
    if options["last_stride"] == 1:
        remove_last_stride(backbone)
