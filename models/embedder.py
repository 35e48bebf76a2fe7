"""A backbone, the options of its head and an optional linear embedding layer on top."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from metric_learning.common.memory import refuse_too_large
from metric_learning.common.sizes import Size, sides
from metric_learning.models.feature_norm import FEATURE_NORMS
from metric_learning.models.last_stride import remove_last_stride
from metric_learning.models.options import MODEL_OPTIONS
from metric_learning.models.pooling import GeMPooling, replace_pooling

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
FLOAT_BYTES = 4


class EmbeddingModel(nn.Module):
    """Pooled feature of a backbone, normalised, through a linear layer, as the options say.

    Args:
        name: of the model, kept for checkpoints.
        backbone: timm model with `num_classes=0`, or `ImageTower`; its pooling and strides are
            changed in place.
        embedding_size: width of the linear layer; 0 returns the normalised feature itself.
        image_size: side of the images in pixels, or height and width; None for those of the
            published weights.
        **options: those of `build_model` that differ from MODEL_OPTIONS.

    Attributes:
        feature_size: width of the backbone's pooled feature; embedding_size: the actual D.
        mean, std: per-channel normalisation of images in 0..1 that the backbone expects.
        image_size, options: height and width, and a value per key of MODEL_OPTIONS.

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
        image_size: Size | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        config: Any = backbone.pretrained_cfg
        feature_size: Any = getattr(backbone, "head_hidden_size", None) or backbone.num_features
        self.name = name
        self.options = MODEL_OPTIONS | options
        self.feature_size: int = feature_size
        self.embedding_size: int = embedding_size or feature_size

        # What images it takes.
        is_reference = name in REFERENCE_MODELS
        own_size = REFERENCE_IMAGE_SIZE if is_reference else tuple(config["input_size"][1:])
        self.mean = tuple(IMAGENET_DEFAULT_MEAN if is_reference else config["mean"])
        self.std = tuple(IMAGENET_DEFAULT_STD if is_reference else config["std"])
        self.image_size = sides(image_size or own_size)

        _apply_options(backbone, self.options)
        self.backbone = backbone
        self.feature_norm = FEATURE_NORMS[self.options["feature_norm"]](feature_size)
        self.embedding: nn.Module = nn.Identity()
        if embedding_size:
            num_bytes = FLOAT_BYTES * feature_size * embedding_size
            refuse_too_large(num_bytes, f"--embedding_size={embedding_size}")
            self.embedding = nn.Linear(feature_size, embedding_size)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the embeddings (B, D) of images (B, 3, H, W)."""
        embeddings: torch.Tensor = self.embedding(self.feature_norm(self.backbone(images)))
        return embeddings

    @property
    def top(self) -> nn.Sequential:
        """What turns the backbone's features (B, F) into embeddings (B, D), in one module."""
        return nn.Sequential(self.feature_norm, self.embedding)

    def with_top(self, top: nn.Module) -> EmbeddingModel:
        """Return a model of the same backbone, not a copy of it, under another `top`."""
        model = copy.copy(self)
        model._modules = dict(self._modules)
        model.feature_norm, model.embedding = top.children()
        return model

    def take_norm(self, metadata: Mapping[str, Any]) -> None:
        """Take the mean and std that weights were trained with, where their metadata has them."""
        self.mean = tuple(metadata.get("mean", self.mean))
        self.std = tuple(metadata.get("std", self.std))

    def new_parts(self) -> dict[str, nn.Module]:
        """Return the parts that weights of a backbone alone do not fill, by their paths."""
        return {
            path: part
            for path, part in self.named_modules()
            if isinstance(part, GeMPooling) or part is self.feature_norm or part is self.embedding
        }

    @property
    def head(self) -> nn.Module:
        """All of `new_parts` in one module, to be trained at another rate."""
        return nn.ModuleList(self.new_parts().values())


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
