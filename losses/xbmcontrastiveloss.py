"""The contrastive loss of cross-batch memory (XBM)."""

from __future__ import annotations

import torch
from torch import Tensor

from metric_learning.losses.pairs import LabelLoss, Pairs


class XbmContrastiveLoss(LabelLoss):
    """What positive pairs lack of cosine 1, plus the cosine of close negative pairs, per anchor.

    L = 1/B sum_i (sum_p (1 - s_ip) + sum_{n: s_in > m} s_in), s the cosine, sums and not means over
    the pairs of an anchor.
    Cross-Batch Memory for Embedding Learning (Wang et al. 2020), as the authors' code has it,
    https://arxiv.org/abs/1912.06798.

    Args:
        negative_cosine: cosine m up to which a negative pair costs nothing.

    Shape: that of `LabelLoss`.

    With `--xbm_size` the sums grow with the memory, as they do there. Differs from the code: an
    image is left out by its row, not as a pair of cosine 1, so that duplicates count.
    """

    def __init__(self, negative_cosine: float = 0.5) -> None:
        super().__init__()
        self.negative_cosine = negative_cosine

    def compare(self, pairs: Pairs) -> Tensor:
        """Return the mean over the anchors of the costs of their pairs."""
        cosines = pairs.cosines  # BxM
        is_close = pairs.is_negative & (cosines.detach() > self.negative_cosine)
        too_far = torch.where(pairs.is_positive, 1.0 - cosines, 0.0)
        too_close = torch.where(is_close, cosines, 0.0)
        return (too_far + too_close).sum() / len(cosines)
