"""From options to a model with random weights and the image pipeline that it takes."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from metric_learning.common.fingerprint import state_of
from metric_learning.common.sizes import Size, scaled, shape_flag, sides, size_text
from metric_learning.engine.embed.embedding import evaluation_mode
from metric_learning.engine.options.parts import ModelOptions
from metric_learning.models import EmbeddingModel, WeightsReport, build_model, load_weights
from metric_learning.models.weights.fingerprint import hash_tensors
from metric_learning.reader.augment import Augmentation
from metric_learning.reader.preprocessing import Preprocessing

NO_AUGMENTATION = Augmentation(min_crop_area=1.0, horizontal_flip=False)


def build_network(options: ModelOptions) -> EmbeddingModel:
    """Build a model with random weights; ValueError where it cannot take images of that size."""
    size = options.image_size
    others = options.head | {"drop_path": options.drop_path}
    model = build_model(options.model, options.embedding_size, image_size=size, **others)
    check_image_size(model, size)
    for scale in options.tta_scales:
        check_image_size(model, scaled(size, scale), f"the size of --tta_scales={scale:g}")
    return model


def build_frozen(options: ModelOptions, seed: int) -> tuple[EmbeddingModel, WeightsReport]:
    """Build a model of --pretrained_model whose backbone nobody may change, and say what it holds.

    Models of the same weights share their backbone, which a process that trains one head after the
    other reads once. What the weights do not fill of the rest is drawn from the seed alone.
    """
    path = str(options.pretrained_model)
    load = _load_frozen if Path(path).is_file() else _load_frozen.__wrapped__  # no folders
    loaded, report = load(options, state_of(path))
    model = loaded.with_top(copy.deepcopy(loaded.top))
    torch.manual_seed(seed)
    for name in ("feature_norm", "embedding"):
        if any(key.startswith(f"{name}.") for key in report.missing):
            getattr(model, name).reset_parameters()
    return model, report


@lru_cache(maxsize=1)
def _load_frozen(options: ModelOptions, state: str) -> tuple[EmbeddingModel, WeightsReport]:
    """Build a model with the weights of a file, or folder, that is in a state."""
    model = build_network(options)
    return model, load_weights(model, str(options.pretrained_model))


@lru_cache(maxsize=1)
def hash_backbone(backbone: nn.Module) -> str:
    """Identify the weights of a backbone that nobody changes any more."""
    return hash_tensors(backbone.state_dict())


def describe_inputs(preprocessing: Preprocessing) -> str:
    """Say how images become the inputs of a network, by which kept features are compared."""
    words = (
        f"{preprocessing.transform}, {size_text(preprocessing.crop_size)}, mean "
        f"{tuple(preprocessing.mean)}, std {tuple(preprocessing.std)}, alpha "
        f"{preprocessing.decoding.alpha}"
    )

    height, width = preprocessing.covered
    if preprocessing.is_squashed:
        words += f", squashed to {height} x {width} px"
    elif (height, width) != replace(preprocessing, resize_ratio=None).covered:
        is_square = height == width
        words += f", short side {height} px" if is_square else f", covers {height} x {width} px"
    if preprocessing.tta_flip:
        words += ", mirrored too"
    if preprocessing.tta_scales:
        words += f", scales {', '.join(map(str, preprocessing.tta_scales))}"
    return words


def preprocessing_of(
    options: ModelOptions,
    model: EmbeddingModel,
    max_pixels: int,
    augmentation: Augmentation = NO_AUGMENTATION,
) -> Preprocessing:
    """Build the image pipeline of a model, which knows its mean and std itself."""
    return Preprocessing(
        transform=options.transform,
        crop_size=options.image_size,
        mean=model.mean,
        std=model.std,
        augmentation=augmentation,
        max_pixels=max_pixels,
        resize_ratio=options.resize_ratio,
        test_resize=options.test_resize,
        tta_flip=options.tta_flip,
        tta_scales=options.tta_scales,
    )


def check_image_size(model: EmbeddingModel, size: Size, what: str | None = None) -> None:
    """Embed one black image; ValueError where the model fails on that size or gives no feature.

    The error calls the size `what`; by default it is that of --image_shape.
    """
    with evaluation_mode(model), torch.inference_mode():
        try:
            embeddings = model(torch.zeros(1, 3, *sides(size)))
        except (RuntimeError, AssertionError, ValueError) as error:
            raise ValueError(
                f"{model.name} cannot take {what or shape_flag(size)}: choose "
                f"another size ({str(error).splitlines()[0]})"
            ) from error
    if embeddings.shape != (1, model.embedding_size):
        raise ValueError(
            f"{model.name} gives {tuple(embeddings.shape)} for one image instead of one feature: "
            "choose another --model"
        )
