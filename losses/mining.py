"""Mining: which triples of a batch a triplet loss is computed from.

Every miner maps pairs whose anchors have a positive and a negative to the squared distances of T
triples, from anchor to positive (T,) and from anchor to negative (T,). An infinite distance to the
negative marks what is no triple.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from metric_learning.losses.functional import euclidean, mean_where
from metric_learning.losses.pairs import Pairs

# Of the distance-weighted draw, Euclidean: closer negatives are drawn as if they were at CLOSEST,
# farther ones than FARTHEST are not drawn (the authors' values).
CLOSEST, FARTHEST = 0.5, 1.4
# Dimensions of the embedding that they were chosen for, and the fewest that have such a density.
AUTHORS_SIZE, LEAST_SIZE = 128, 3


def mine_all(pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Every anchor with each of its positives and each of its negatives."""
    to_positive, to_references, _ = _by_positive_pair(pairs)
    anchors = pairs.host_positive.nonzero(as_tuple=True)[0]  # T
    triples, columns = pairs.positions(pairs.host_negative[anchors])
    return to_positive[triples], to_references[triples, columns]


def mine_hard(pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Every anchor with its farthest positive and its closest negative (Hermans et al. 2017)."""
    distances = pairs.squared_distances
    farthest = distances.masked_fill(~pairs.is_positive, -torch.inf).amax(1)
    closest = distances.masked_fill(~pairs.is_negative, torch.inf).amin(1)
    return farthest, closest


def mine_semihard(pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Every positive pair with the closest negative farther than the positive (FaceNet).

    Pairs without such a negative are no triples.
    """
    to_positive, to_references, is_negative = _by_positive_pair(pairs)
    is_candidate = is_negative & (to_references > to_positive[:, None])
    return to_positive, to_references.masked_fill(~is_candidate, torch.inf).amin(1)


def mine_by_distance(pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Every positive pair with one negative, drawn so that all distances are equally likely.

    A negative at distance d is drawn with probability proportional to 1 / q(d), the density
    q(d) ~ d^(D-2) (1 - d^2/4)^((D-3)/2) being that of uniform points of the unit sphere; uniformly
    where all are too far. Sampling Matters (Wu et al. 2017), section 4.1. The paper's D is 128; for
    embeddings of more dimensions it is that of `effective_size`, since with 2048 nearly all the
    probability would fall to the closest negative.
    """
    to_positive, to_references, is_negative = _by_positive_pair(pairs)
    with torch.no_grad():
        size = effective_size(pairs)
        distances = euclidean(to_references)
        near = distances.clamp(CLOSEST, FARTHEST)
        log_density = (size - 2) * near.log() + (size - 3) / 2 * (1 - near.square() / 4).log()
        is_candidate = is_negative & (distances < FARTHEST)
        is_candidate |= is_negative & ~is_candidate.any(1, keepdim=True)
        scores = torch.where(distances < FARTHEST, -log_density, 0.0)
        weights = scores.masked_fill(~is_candidate, -torch.inf).softmax(1)
        drawn = torch.multinomial(weights, 1) if len(weights) else weights[:, :1].long()
    return to_positive, to_references.gather(1, drawn).squeeze(1)


def effective_size(pairs: Pairs) -> Tensor | int:
    """Return the dimensions D of the sphere that embeddings fill, (): their own up to 128.

    Of more, 1 / mean cos^2 over the negative pairs, 3 to 128: of points that are uniform on the
    sphere of D dimensions, cos^2 is 1 / D on average.
    """
    size = pairs.anchors.shape[1]
    if size <= AUTHORS_SIZE:
        return size
    spread = mean_where(pairs.cosines.square(), pairs.is_negative)
    return spread.reciprocal().clamp(LEAST_SIZE, AUTHORS_SIZE)


def _by_positive_pair(pairs: Pairs) -> tuple[Tensor, Tensor, Tensor]:
    """Squared distances per positive pair (T,), of its anchor to all references, and negatives."""
    rows, columns = pairs.positions(pairs.host_positive)
    to_references = pairs.squared_distances[rows]  # TxM
    to_positive = to_references.gather(1, columns[:, None]).squeeze(1)
    return to_positive, to_references, pairs.is_negative[rows]


MINERS: dict[str, Callable[[Pairs], tuple[Tensor, Tensor]]] = {
    "all": mine_all,
    "hard": mine_hard,
    "semihard": mine_semihard,
    "distance": mine_by_distance,
}
