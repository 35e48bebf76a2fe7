"""Top-1 and top-5 accuracy, where a checkpoint has a class layer for the classes of the images."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.inference import Embedder, load_split
from reader import Index


def class_numbers(args: Namespace, embedder: Embedder, index: Index) -> np.ndarray | None:
    """Return the class layer's numbers of the classes of an index, (N,) int64.

    Returns:
        None where there is no class layer, or an image is of a class that it was not trained on, as
        in the test split of the retrieval benchmarks.
    """
    if embedder.class_layer is None:
        return None
    try:
        train = index if index.split == "train" else load_split(args, "train")
    except (OSError, ValueError):
        return None  # the training images are not here, so what the layer's numbers mean is unknown
    number_of = {name: label for label, name in train.class_names.items()}
    names = [index.class_names[label] for label in index.labels.tolist()]
    is_known = all(name in number_of for name in set(names))
    if not is_known or len(number_of) != len(embedder.class_layer.weight):
        return None
    return np.array([number_of[name] for name in names], dtype=np.int64)


@torch.inference_mode()
def classify(
    class_layer: Any,
    embeddings: np.ndarray,
    labels: np.ndarray,
    batch_size: int,
    log: Callable[[str], object],
    log_every: int,
) -> dict[str, float]:
    """Score the classes of a class layer, with the reference's line every `log_every` batches.

    Args:
        class_layer: a stage-1 loss with its class weights.
        embeddings: (N, D) float32.
        labels: (N,) int64, numbers of the classes of the layer.
        batch_size: images per line.
        log: receives `Testbatch N,loss L, acc1 A,acc5 B`, means of the batch.
        log_every: in batches.

    Returns:
        `loss`, `acc1` and `acc5` over all images; acc5 counts the five best classes, or all.
    """
    device = class_layer.weight.device
    totals = np.zeros(3)
    for number, start in enumerate(range(0, len(labels), batch_size)):
        rows = slice(start, start + batch_size)
        truth = torch.from_numpy(labels[rows]).to(device)
        batch = torch.from_numpy(np.array(embeddings[rows])).to(device)
        loss = class_layer(batch, truth)[0]
        ahead = classes_ahead(class_layer.class_scores(batch), truth)
        figures = np.array([float(loss), *(float((ahead < k).double().mean()) for k in (1, 5))])
        totals += figures * len(truth)
        if number % log_every == 0:
            log("Testbatch {},loss {:.6g}, acc1 {:.6g},acc5 {:.6g}".format(number, *figures))
    return dict(zip(("loss", "acc1", "acc5"), (totals / len(labels)).tolist(), strict=True))


def classes_ahead(scores: Tensor, labels: Tensor) -> Tensor:
    """Count the classes whose score is at least that of the image's own: (B, C), (B,) -> (B,).

    A score that ties or is NaN counts against the image.
    """
    targets = scores.gather(1, labels[:, None])  # Bx1
    return (~(scores < targets)).sum(1) - 1  # its own class is not ahead of itself


def accuracies(ahead: Tensor) -> dict[str, Tensor]:
    """Return `acc1` and `acc5`, () each, from `classes_ahead` of the images of a batch."""
    return {f"acc{k}": (ahead < k).float().mean() for k in (1, 5)}
