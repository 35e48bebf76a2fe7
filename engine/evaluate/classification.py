"""Top-1 and top-5 accuracy, where a class layer knows the classes of the images."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from metric_learning.losses.classes import fixed_directions
from metric_learning.losses.functional import classes_ahead
from metric_learning.reader import ImageSet


def class_numbers(
    image_set: ImageSet, num_classes: int, class_names: Sequence[str] | None
) -> np.ndarray | None:
    """Return a class layer's numbers of the classes of N images, (N,) int64; None if one has none.

    Without the `class_names` of the layer, as in a file from elsewhere, the data set's own numbers
    are meant.
    """
    names = image_set.class_names
    if class_names is None:
        # Training labels are counted anew from 0, so some of the classes would get wrong numbers.
        is_known = (
            len(names) == num_classes if image_set.split == "train" else max(names) < num_classes
        )
        return image_set.labels if is_known else None
    number_of = {name: number for number, name in enumerate(class_names)}
    if not set(names.values()) <= set(number_of) or len(number_of) != num_classes:
        return None
    return np.array(
        [number_of[names[label]] for label in image_set.labels.tolist()], dtype=np.int64
    )


@torch.inference_mode()
def classify(
    class_layer: Any,
    embeddings: np.ndarray,
    labels: np.ndarray,
    batch_size: int,
    log: Callable[[str], object] = lambda line: None,
    log_every: int = 1,
) -> dict[str, float]:
    """Score the classes of a stage-1 loss in evaluation mode, with v1's line every so many batches.

    From embeddings (N, D) float32 and labels (N,) int64, numbers of the classes of the layer.

    Returns:
        `loss`, with its margin, and `acc1` and `acc5`, without, over all images.
    """
    device = class_layer.weight.device
    totals = np.zeros(3)
    with fixed_directions(class_layer):
        for number, start in enumerate(range(0, len(labels), batch_size)):
            begin = time.perf_counter()
            rows = slice(start, start + batch_size)
            truth = torch.from_numpy(labels[rows]).to(device)
            batch = torch.from_numpy(np.array(embeddings[rows])).to(device)
            loss = class_layer(batch, truth)[0]
            ahead = classes_ahead(class_layer.class_scores(batch), truth)
            figures = np.array([float(loss), *(float((ahead < k).double().mean()) for k in (1, 5))])

            totals += figures * len(truth)
            if number % log_every == 0:
                shown = [float(f"{figure:.12g}") for figure in figures]
                seconds = time.perf_counter() - begin
                line = "Testbatch {},loss {}, acc1 {},acc5 {},time {:.2f} sec"
                log(line.format(number, *shown, seconds))
    return dict(zip(("loss", "acc1", "acc5"), (totals / len(labels)).tolist(), strict=True))


def class_layer_of(criterion: nn.Module) -> Any:
    """Return a loss's class layer, that of stage 1 itself; None where there is no whole one."""
    layer = getattr(criterion, "class_layer", criterion)
    return layer if hasattr(layer, "class_scores") else None
