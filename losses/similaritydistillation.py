"""Distillation: a batch's similarities as a teacher sees them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metric_learning.losses.functional import normalised


class SimilarityDistillation(nn.Module):
    """KL divergence of a student's similarities inside a batch from those of a frozen teacher.

    p_ij = exp(cos(t_i, t_j) / T) / sum over k != i of exp(cos(t_i, t_k) / T), q_ij likewise of the
    student's embeddings; L = mean_i sum over j != i of p_ij log(p_ij / q_ij).
    Learning Deep Representations with Probabilistic Knowledge Transfer (Passalis and Tefas 2018),
    eq. 3 to 6, https://arxiv.org/abs/1803.10837, with the exponential of the cosine as similarity,
    as CompRess (Koohpayegani et al. 2020), eq. 1 and 2, https://arxiv.org/abs/2010.14713, where
    they write (cos + 1) / 2. In UDON (Ypsilantis et al. 2024) it stands beside the class loss.

    Args:
        temperature: T above 0, which divides cosines: the smaller, the more do the nearest count.

    Shape:
        embeddings: (B, D) float, B at least 2.
        targets: (B, E) float, the teacher's of the same images, which get no gradient.
        returns: () float32.

    Raises:
        ValueError: the temperature is not above 0, or the two are not of as many images.
    """

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"expected a temperature above 0, found {temperature:g}")
        self.temperature = temperature

    def forward(self, embeddings: Tensor, targets: Tensor) -> Tensor:
        """Return the mean divergence."""
        if len(embeddings) != len(targets):
            raise ValueError(
                f"expected targets of {len(embeddings)} images, found {len(targets)} of them"
            )
        ours = self.log_probabilities(embeddings)
        theirs = self.log_probabilities(targets.detach())
        return F.kl_div(ours, theirs, reduction="sum", log_target=True) / len(embeddings)

    def log_probabilities(self, embeddings: Tensor) -> Tensor:
        """Return log probabilities (B, B - 1): of each image, over the others in their order."""
        unit, count = normalised(embeddings), len(embeddings)
        logits = unit @ unit.T / self.temperature  # BxB
        # All but the diagonal: behind its first entry, it is the last column of B - 1 rows.
        others = logits.flatten()[1:].view(count - 1, count + 1)[:, :-1].reshape(count, count - 1)
        return torch.log_softmax(others, dim=1)
