"""From flags to a model with random weights, at a size of images that it can take."""

from __future__ import annotations

from argparse import Namespace

import torch

from metric_learning.engine.embed.extract import evaluation_mode
from metric_learning.models import MODEL_OPTIONS, EmbeddingModel, build_model


def model_of(args: Namespace) -> EmbeddingModel:
    """Build the model that the flags describe, with random weights; it settles --image_shape.

    Raises:
        ValueError: there is no such model, or it cannot take images of that size.
    """
    options = {name: getattr(args, name) for name in MODEL_OPTIONS}
    size = args.image_shape[1] if args.image_shape else None
    model = build_model(args.model, args.embedding_size, image_size=size, **options)
    args.image_shape = (3, model.image_size, model.image_size)
    check_image_size(model, model.image_size)
    return model


def check_image_size(model: EmbeddingModel, size: int) -> None:
    """Embed one black image, so that a size that the model cannot take is an error at once.

    Raises:
        ValueError: the model fails on images of that size, or gives no feature per image.
    """
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
