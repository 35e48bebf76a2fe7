"""What is special about each stage: which batches it draws, and what its loss is called with."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metric_learning.engine.options.parts import BatchOptions
from metric_learning.engine.parallel.collectives import StageLoss
from metric_learning.engine.parallel.sharded_head import ShardedHead
from metric_learning.engine.parallel.world import World
from metric_learning.losses.functional import accuracies, classes_ahead, mean_where, sent
from metric_learning.reader.batches import samplers
from metric_learning.reader.batches.related_classes import (
    HardClassSampler,
    HierarchicalSampler,
    Relations,
)
from metric_learning.reader.batches.samplers import SeededSampler


def draw_images(
    labels: np.ndarray, batches: BatchOptions, seed: int, world: World, relations: Relations
) -> SeededSampler:
    """Draw every image once per epoch, in an order that changes every epoch, or P-K batches."""
    share = (seed, world.rank, world.size, batches.accumulation_steps)
    if batches.samples_each_class:
        size = batches.samples_each_class
        return samplers.ClassBlockSampler(labels, batches.train_batch_size, size, *share)
    return samplers.ShuffledSampler(labels, batches.train_batch_size, *share)


def elem_loss(
    criterion: nn.Module, embeddings: Tensor, labels: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the loss, and top-1 and top-5 accuracy from the logits it was computed from."""
    if isinstance(criterion, ShardedHead):
        loss, ahead = criterion(embeddings, labels)
    else:
        loss, logits = criterion(embeddings, labels)
        ahead = classes_ahead(logits.detach(), sent(labels, logits.device))  # B
    return loss, accuracies(ahead)


def draw_groups(
    labels: np.ndarray, batches: BatchOptions, seed: int, world: World, relations: Relations
) -> SeededSampler:
    """Draw the batches that the loss takes: triples, pairs, or blocks of K images of P classes."""
    share = (seed, world.rank, world.size, batches.accumulation_steps)
    if batches.layout == "triples":
        return samplers.TripleSampler(labels, batches.train_batch_size, *share)
    if batches.layout == "pairs":
        return samplers.PairSampler(labels, batches.train_batch_size, *share)
    blocks = labels, batches.train_batch_size, batches.samples_each_class
    if relations.super_classes is not None:
        return HierarchicalSampler(*blocks, relations.super_classes, *share)
    if relations.nearest is not None:
        return HardClassSampler(*blocks, relations.nearest, batches.hard_classes, *share)
    return samplers.ClassBlockSampler(*blocks, *share)


def pair_loss(
    criterion: nn.Module, embeddings: Tensor, labels: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the loss, and Recall@1 inside the batch by cosine; with --alpha v1's figures.

    Beside them the `norm` of the embeddings and squared distances, see `geometry`.
    """
    loss = criterion(embeddings, labels)
    labels = sent(labels, embeddings.device)
    similarities, figures = geometry(embeddings.detach(), labels)
    if isinstance(loss, tuple):
        loss, (metric, cross_entropy, logits) = loss
        parts = {"loss_metric": metric.detach(), "loss_cls": cross_entropy.detach()}
        return loss, {**parts, **accuracies(classes_ahead(logits.detach(), labels)), **figures}

    recall = (labels[similarities.argmax(1)] == labels).float().mean()
    return loss, {"recall": recall, **figures}


def geometry(embeddings: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return cosines (B, B), -inf of an image with itself, and how far images lie apart.

    The figures are the mean `norm` of raw embeddings (B, D) and the mean squared distances of pairs
    of one class, `d2_pos`, and of each image to the nearest of another class, `d2_neg`, () each.
    """
    norms = torch.linalg.vector_norm(embeddings, dim=1)  # B
    unit = F.normalize(embeddings)
    cosines = unit @ unit.T  # BxB
    squares = norms.square()
    distances = squares[:, None] + squares - 2 * norms[:, None] * norms * cosines
    distances = distances.clamp(min=0.0)

    is_positive = (labels[:, None] == labels).fill_diagonal_(False)
    is_negative = labels[:, None] != labels
    nearest = distances.masked_fill(~is_negative, torch.inf).amin(1)
    figures = {
        "norm": norms.mean(),
        "d2_pos": mean_where(distances, is_positive),
        "d2_neg": mean_where(nearest, nearest.isfinite()),
    }
    return cosines.fill_diagonal_(-torch.inf), figures


class Stage(NamedTuple):
    """One of the two stages: its number, the sampler of its batches, and its loss."""

    number: int
    make_sampler: Callable[[np.ndarray, BatchOptions, int, World, Relations], SeededSampler]
    loss: StageLoss


ELEM = Stage(1, draw_images, elem_loss)
PAIR = Stage(2, draw_groups, pair_loss)
