"""Contrastive loss of hyperbolic distances: embeddings as points of the Poincare ball."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from metric_learning.losses.functional import (
    check_above_zero,
    full_precision,
    log_sum_exp,
    mean_or_zero,
    row_norms,
)
from metric_learning.losses.pairs import LabelLoss, Pairs

LEAST_NORM = 1e-5  # of what divides, as the authors have it
RIM = 1e-3  # share of the ball's radius that points stay away from its rim
LEAST_GAP = 1e-12  # under the root of a distance, so that its gradient at 0 is 0 and not NaN


class HyperbolicLoss(LabelLoss):
    """Cross-entropy of each anchor's positives over all others, by distances in the Poincare ball.

    L = mean_i -1/|P_i| sum_{p in P_i} log(exp(-d_ip / t) / sum_{a != i} exp(-d_ia / t)),
    d(u, v) = 2 / sqrt(c) artanh(sqrt(c) |-u (+)_c v|), the distance of the ball of curvature -c;
    u = tanh(sqrt(c) |x|) x / (sqrt(c) |x|), the exponential map at 0, of raw embeddings x that are
    first shortened to a length of at most r.
    Hyperbolic Vision Transformers (Ermolov et al. 2022), section 3, and the authors' code,
    https://arxiv.org/abs/2203.10833.

    Args:
        hyp_c: curvature c of the ball.
        hyp_clip: length r that embeddings are shortened to.
        temperature: divisor t of the distances.

    Shape: that of `LabelLoss`, but that embeddings are read as they are; also a ValueError where an
    option is 0.

    Anchors without a positive or a negative do not count. Retrieval: of embeddings that are all as
    long as r or longer, those of smaller angle are closer in the ball, so that cosines rank them
    exactly as hyperbolic distances do; of shorter ones they do not. Differs from the authors' code,
    which takes two images per class: a mean over all anchors and not two, one for either image;
    with more images, all others are in the sum, as in the paper.
    """

    reads_raw = True

    def __init__(self, hyp_c: float = 0.1, hyp_clip: float = 2.3, temperature: float = 0.2) -> None:
        super().__init__()
        check_above_zero(hyp_c=hyp_c, hyp_clip=hyp_clip, temperature=temperature)
        self.hyp_c = hyp_c
        self.hyp_clip = hyp_clip
        self.temperature = temperature

    def place(self, embeddings: Tensor) -> Tensor:
        """Map raw embeddings (B, D) into the ball, in float32 at least."""
        lengths = row_norms(embeddings)  # Bx1
        factors = (self.hyp_clip / (lengths + LEAST_NORM)).clamp(max=1.0)
        clipped = (lengths * factors).clamp(min=LEAST_NORM)
        root = math.sqrt(self.hyp_c)
        radii = torch.tanh(root * clipped).clamp(max=1.0 - RIM) / root
        return full_precision(embeddings) * (factors * radii / clipped)

    def compare(self, pairs: Pairs) -> Tensor:
        """Return the mean cross-entropy of the anchors."""
        pairs = pairs.complete()
        logits = -self.distances(pairs) / self.temperature  # BxM
        total = log_sum_exp(logits, pairs.is_positive | pairs.is_negative)
        to_positives = (logits * pairs.is_positive).sum(1) / pairs.is_positive.sum(1)
        return mean_or_zero(total - to_positives)

    def distances(self, pairs: Pairs) -> Tensor:
        """Return the hyperbolic distance of every pair of points of the ball, (B, M).

        By cosh(sqrt(c) d) = 1 + 2 g, g = c |u - v|^2 / ((1 - c |u|^2) (1 - c |v|^2)), for which no
        B x M x D numbers are needed.
        """
        squares = pairs.anchors.square().sum(1, keepdim=True)  # Bx1
        others = pairs.references.square().sum(1)  # M
        apart = squares + others - 2.0 * pairs.anchors @ pairs.references.T
        room = (1.0 - self.hyp_c * squares) * (1.0 - self.hyp_c * others)
        gaps = (self.hyp_c * apart / room).clamp(min=LEAST_GAP)
        return 2.0 / math.sqrt(self.hyp_c) * torch.asinh(gaps.sqrt())
