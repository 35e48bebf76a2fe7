"""Pairs by label, for the losses that look at labels and not at positions.

Batches of P classes with K images each suit all of them, in any order; classes may differ in size
and an image may be there twice. An image without a positive or without a negative is no anchor
where a loss needs both (`Pairs.complete`); a batch without any costs nothing and has zero gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from metric_learning.losses.functional import check_batch, normalised, sent


@dataclass(frozen=True)
class Pairs:
    """Anchors beside the references that they are compared with, where `LabelLoss.place` has them.

    Which pairs are positive or negative is known where the labels lie, and there it is looked for
    what is variable in number; the device gets masks and positions.
    """

    anchors: Tensor  # (B, D) float
    references: Tensor  # (M, D) float; of a plain batch the anchors themselves
    host_positive: Tensor  # (B, M) bool, pairs of one class without those of an image with itself
    host_negative: Tensor  # (B, M) bool, pairs of two classes

    @cached_property
    def is_positive(self) -> Tensor:
        """`host_positive` on the device of the anchors."""
        return sent(self.host_positive, self.anchors.device)

    @cached_property
    def is_negative(self) -> Tensor:
        """`host_negative` on the device of the anchors."""
        return sent(self.host_negative, self.anchors.device)

    @cached_property
    def cosines(self) -> Tensor:
        """Cosine of every pair, (B, M), of rows on the unit sphere."""
        return self.anchors @ self.references.T

    @cached_property
    def squared_distances(self) -> Tensor:
        """Squared Euclidean distance of every pair, (B, M), 0..4, of rows on the unit sphere."""
        return (2.0 - 2.0 * self.cosines).clamp(min=0.0)

    def complete(self) -> Pairs:
        """Return the pairs of those anchors that have a positive and a negative."""
        has_both = self.host_positive.any(1) & self.host_negative.any(1)
        if bool(has_both.all()):
            return self
        (rows,) = self.positions(has_both)
        return Pairs(
            self.anchors[rows],
            self.references,
            self.host_positive[has_both],
            self.host_negative[has_both],
        )

    def positions(self, host_mask: Tensor) -> tuple[Tensor, ...]:
        """Return where a mask that lies with the labels is true, an index (T,) per dimension."""
        return sent(host_mask.nonzero(), self.anchors.device).unbind(1)


class LabelLoss(nn.Module):
    """A loss on the pairs of a batch by label; a subclass computes it in `compare`.

    Shape:
        embeddings: (B, D) float, normalised here; a subclass may place them otherwise.
        labels: (B,) int64, in any order.
        returns: () float32.
    """

    layout = "labels"

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of all pairs inside the batch."""
        check_batch(embeddings, labels)
        own = torch.arange(len(labels), device=labels.device)
        return self.compare(pairs_with(embeddings, labels, embeddings, labels, own, self.place))

    def place(self, embeddings: Tensor) -> Tensor:
        """Return embeddings (B, D) where they are compared: on the unit sphere."""
        return normalised(embeddings)

    def compare(self, pairs: Pairs) -> Tensor:
        """Return the loss () of pairs; zero, with zero gradient, where nothing can be compared."""
        raise NotImplementedError


def pairs_with(
    embeddings: Tensor,
    labels: Tensor,
    references: Tensor,
    reference_labels: Tensor,
    own: Tensor,
    place: Callable[[Tensor], Tensor] = normalised,
) -> Pairs:
    """Pair a batch with references (M, D) by label.

    `own` (B,) int64 has the row of each image among the references; it lies with the labels. The
    embeddings are compared where `place` maps them to.
    """
    is_same_class = labels[:, None] == reference_labels[None, :]
    return Pairs(
        place(embeddings),
        place(references),
        is_same_class.scatter(1, own[:, None], False),
        ~is_same_class,
    )


def soft_ranks(pairs: Pairs, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Rank every positive among all references of its anchor by cosine, differentiably.

    The rank is 1 + sum_j sigmoid((s_j - s_i) / temperature) over the other references j, which is
    exact as the temperature goes to 0. It takes T x M numbers.

    Returns:
        The anchor of each of the T positive pairs (T,) int64, its rank among all references (T,)
        and among the positives alone (T,).
    """
    rows, columns = pairs.positions(pairs.host_positive)
    cosines = pairs.cosines[rows]  # TxM
    differences = cosines - cosines.gather(1, columns[:, None])
    is_ahead = torch.sigmoid(differences / temperature).scatter(1, columns[:, None], 0.0)
    is_positive = pairs.is_positive[rows]
    among_positives = 1.0 + (is_ahead * is_positive).sum(1)
    return rows, among_positives + (is_ahead * pairs.is_negative[rows]).sum(1), among_positives
