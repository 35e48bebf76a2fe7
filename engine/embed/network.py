"""From options to a model with random weights and the image pipeline that it takes."""

from __future__ import annotations

import torch

from metric_learning.engine.embed.embedding import evaluation_mode
from metric_learning.engine.options.parts import ModelOptions
from metric_learning.models import EmbeddingModel, build_model
from metric_learning.reader.preprocessing import Preprocessing


def build_network(options: ModelOptions) -> EmbeddingModel:
    """Build a model with random weights; ValueError where it cannot take images of that size."""
    size = options.image_shape[1]
    model = build_model(options.model, options.embedding_size, image_size=size, **options.head)
    check_image_size(model, size)
    return model


def preprocessing_of(
    options: ModelOptions,
    model: EmbeddingModel,
    max_pixels: int,
    min_crop_area: float = 1.0,
    horizontal_flip: bool = False,
) -> Preprocessing:
    """Build the image pipeline of a model, which knows its mean and std itself."""
    return Preprocessing(
        transform=options.transform,
        crop_size=options.image_shape[1],
        mean=model.mean,
        std=model.std,
        min_crop_area=min_crop_area,
        horizontal_flip=horizontal_flip,
        max_pixels=max_pixels,
    )


def check_image_size(model: EmbeddingModel, size: int) -> None:
    """Embed one black image; ValueError where the model fails on that size or gives no feature."""
    with evaluation_mode(model), torch.inference_mode():
        try:
            embeddings = model(torch.zeros(1, 3, size, size))
        except (RuntimeError, AssertionError, ValueError) as error:
            raise ValueError(
                f"{model.name} cannot take --image_shape=3,{size},{size}: choose another size "
                f"({str(error).splitlines()[0]})"
            ) from error
    if embeddings.shape != (1, model.embedding_size):
        raise ValueError(
            f"{model.name} gives {tuple(embeddings.shape)} for one image instead of one feature: "
            "choose another --model"
        )
