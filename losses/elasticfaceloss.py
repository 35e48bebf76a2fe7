"""ElasticFace losses: margins that are drawn anew for each image."""

from __future__ import annotations

import torch
from torch import Tensor

from metric_learning.losses.classes import CosineLoss, angles
from metric_learning.losses.functional import change_targets


class ElasticLoss(CosineLoss):
    """Base of both: margins from a normal distribution, in evaluation mode its mean.

    They come from torch's random generator. A subclass applies them in `with_margins`, and has in
    `STDS` the deviations that the authors train with, of the plain form and of the + form.
    """

    STDS: tuple[float, float]

    def __init__(
        self,
        class_dim: int,
        embedding_size: int,
        scale: float,
        margin: float,
        elastic_std: float | None,
        elastic_plus: bool,
    ) -> None:
        super().__init__(class_dim, embedding_size, scale)
        self.margin = margin
        self.elastic_std = self.STDS[elastic_plus] if elastic_std is None else elastic_std
        self.elastic_plus = elastic_plus

    def with_margins(self, targets: Tensor, margins: Tensor) -> Tensor:
        """Cosines (B, 1) with margins (B, 1): -> (B, 1)."""
        raise NotImplementedError

    def margined(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the margined, scaled logits (B, C)."""

        def add_margin(targets: Tensor) -> Tensor:
            return self.with_margins(targets, self._draw(targets.detach()))

        return self.scale * change_targets(self.cosines(embeddings), labels, add_margin)

    def _draw(self, targets: Tensor) -> Tensor:
        """Return a margin for each target cosine: (B, 1) -> (B, 1)."""
        margins = torch.full_like(targets, self.margin)
        if not self.training:
            return margins
        margins += self.elastic_std * torch.randn_like(targets)
        if not self.elastic_plus:
            return margins
        closest_first = targets.argsort(0, descending=True)
        return margins.scatter(0, closest_first, margins.sort(0).values)


class ElasticArcLoss(ElasticLoss):
    """ArcFace whose margin is drawn anew for each image.

    L = mean_i -log softmax(s c_i)[y_i], c_ij = cos(a_ij) for j != y_i and c_ij = cos(a_ij + m_i)
    for j = y_i, the angle at most pi, m_i from a normal distribution; in evaluation mode m_i is its
    mean. ElasticFace-Arc and -Arc+ (Boutros et al. 2022), eq. 6 and section 3.3,
    https://arxiv.org/abs/2109.09416.

    Args:
        scale: factor s on the cosines.
        arc_margin: mean of the angles added at the target class, in radians.
        elastic_std: standard deviation of the margins, in radians; None for the authors', 0.05,
            and 0.0175 of the + form.
        elastic_plus: give the larger margins to the images further from their class.

    Shape, errors and the arguments for C and D are those of `CosineLoss`.

    Differs from the authors' code, whose sorted margins of the + form reach the classes of other
    images: here they reach the images that the paper says. The gradient is 0 where
    |cos| > 1 - 1e-6 and where the angle would pass 0 or pi.
    """

    STDS = (0.05, 0.0175)

    def __init__(
        self,
        class_dim: int,
        embedding_size: int,
        scale: float = 64.0,
        arc_margin: float = 0.5,
        elastic_std: float | None = None,
        elastic_plus: bool = False,
    ) -> None:
        super().__init__(class_dim, embedding_size, scale, arc_margin, elastic_std, elastic_plus)

    def with_margins(self, targets: Tensor, margins: Tensor) -> Tensor:
        """Cosines of the angles enlarged by margins."""
        return (angles(targets) + margins).clamp(0.0, torch.pi).cos()


class ElasticCosLoss(ElasticLoss):
    """CosFace whose margin is drawn anew for each image.

    L = mean_i -log softmax(s (c_i - m_i [j = y_i]))[y_i], c_ij = cos(x_i, w_j), m_i from a normal
    distribution; in evaluation mode m_i is its mean.
    ElasticFace-Cos and -Cos+ (Boutros et al. 2022), eq. 7 and section 3.3,
    https://arxiv.org/abs/2109.09416.

    Args:
        scale: factor s on the cosines.
        cos_margin: mean of the margins that the cosine of the target class loses.
        elastic_std: standard deviation of the margins, in cosine; None for the authors', 0.05, and
            0.02 of the + form.
        elastic_plus: give the larger margins to the images further from their class.

    Shape, errors and the arguments for C and D are those of `CosineLoss`.

    Differs from the authors' code as ElasticArcLoss.
    """

    STDS = (0.05, 0.02)

    def __init__(
        self,
        class_dim: int,
        embedding_size: int,
        scale: float = 64.0,
        cos_margin: float = 0.35,
        elastic_std: float | None = None,
        elastic_plus: bool = False,
    ) -> None:
        super().__init__(class_dim, embedding_size, scale, cos_margin, elastic_std, elastic_plus)

    def with_margins(self, targets: Tensor, margins: Tensor) -> Tensor:
        """Cosines less margins."""
        return targets - margins
