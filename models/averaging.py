"""Weights between those before a fine-tuning and those after it."""

from __future__ import annotations

import torch

from metric_learning.models.embedder import EmbeddingModel


@torch.no_grad()
def average_with(model: EmbeddingModel, start: EmbeddingModel, share: float) -> None:
    """Move the weights of a model towards those that its training started from, in place.

    theta = (1 - share) theta_tuned + share theta_start, over the whole state: the statistics of
    batch norm are averaged as the weights are, and counters stay those of the model.
    WiSE-FT (Wortsman et al. 2022), section 3, https://arxiv.org/abs/2109.01903, whose alpha is
    1 - share; as there, no statistics are computed anew.

    Args:
        model: after the fine-tuning; changed.
        start: the same network before it.
        share: of the start, 0 to 1.
    """
    before = start.state_dict()
    for name, values in model.state_dict().items():
        if values.is_floating_point():
            values.mul_(1.0 - share).add_(before[name], alpha=share)
