"""Mining: which triples are chosen, and how often those that are drawn."""

import pytest
import torch

from metric_learning.losses.mining import (
    CLOSEST,
    FARTHEST,
    effective_size,
    mine_by_distance,
    mine_semihard,
)
from metric_learning.losses.pairs import Pairs, pairs_with


def pairs_at(distances, size=6):
    """One anchor with a positive beside it and negatives at these Euclidean distances."""
    squared = torch.tensor([0.01, *distances], dtype=torch.float64).square()
    cosines = 1 - squared / 2
    references = torch.zeros(len(squared), size, dtype=torch.float64)
    references[:, 0], references[:, 1] = cosines, (1 - cosines.square()).sqrt()
    anchor = torch.eye(1, size, dtype=torch.float64)
    is_positive = torch.arange(len(squared))[None] == 0
    return Pairs(anchor, references, is_positive, ~is_positive)


@pytest.mark.parametrize("size", [3, 16])
def test_distances_are_drawn_inversely_to_their_density_on_the_sphere(size):
    distances = torch.tensor([0.2, CLOSEST, 0.8, 1.1, 1.3, 1.6], dtype=torch.float64)
    capped = distances.clamp(min=CLOSEST)
    density = capped ** (size - 2) * (1 - capped.square() / 4) ** ((size - 3) / 2)
    expected = torch.where(distances < FARTHEST, 1 / density, 0.0)
    expected /= expected.sum()
    one = pairs_at(distances.tolist(), size)
    torch.manual_seed(0)
    num_draws = 20_000
    many = Pairs(
        one.anchors.expand(num_draws, -1),
        one.references,
        one.is_positive.expand(num_draws, -1),
        one.is_negative.expand(num_draws, -1),
    )
    drawn = mine_by_distance(many)[1].sqrt()
    shares = (drawn[:, None] - distances).abs().lt(1e-6).double().mean(0)
    assert shares.sum() == pytest.approx(1)
    torch.testing.assert_close(shares, expected, atol=0.015, rtol=0)


def test_draws_are_uniform_where_all_negatives_are_far():
    torch.manual_seed(0)
    far = pairs_at([1.5, 1.7, 1.9])
    drawn = torch.cat([mine_by_distance(far)[1] for _ in range(600)]).sqrt()
    for distance in (1.5, 1.7, 1.9):
        assert (drawn - distance).abs().lt(1e-6).double().mean() == pytest.approx(1 / 3, abs=0.07)


def test_draws_come_from_torch_s_generator():
    embeddings = torch.randn(24, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(6).repeat(4)
    pairs = pairs_with(embeddings, labels, embeddings, labels, torch.arange(24))
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(mine_by_distance(pairs)[1])
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_semihard_leaves_out_pairs_without_a_farther_negative():
    pairs = pairs_at([0.005, 0.008])
    assert mine_semihard(pairs)[1].tolist() == [torch.inf]  # no triple
    to_positive, to_negative = mine_semihard(pairs_at([0.005, 0.5, 0.4]))
    assert to_positive.sqrt().tolist() == pytest.approx([0.01])
    assert to_negative.sqrt().tolist() == pytest.approx([0.4])


def batch_in(size, filled, offset):
    """Ten classes of three rows in `size` dimensions, of which they fill few, around an offset."""
    rng = torch.Generator().manual_seed(0)
    centres = torch.randn(10, 1, filled, generator=rng)
    rows = centres + 0.6 * torch.randn(10, 3, filled, generator=rng)
    rows = rows.flatten(0, 1) @ torch.randn(filled, size, generator=rng)
    rows = torch.nn.functional.normalize(rows)
    rows = rows + offset * torch.nn.functional.normalize(torch.ones(1, size))
    labels = torch.arange(10).repeat_interleave(3)
    return pairs_with(rows, labels, rows, labels, torch.arange(30))


@pytest.mark.parametrize("size", [1280, 2048])
@pytest.mark.parametrize(("filled", "offset"), [(30, 0.0), (30, 1.0), (200, 0.0), (200, 0.5)])
def test_many_dimensions_leave_more_than_the_closest_negative(size, filled, offset):
    """By the density of their own number of dimensions, one of 27 negatives took all the draws."""
    pairs = batch_in(size, filled, offset)
    torch.manual_seed(0)
    draws = torch.stack([mine_by_distance(pairs)[1] for _ in range(300)])  # 300 x pairs
    effective = []
    for column in draws.T:
        shares = column.unique(return_counts=True)[1] / len(draws)
        effective.append(float(1 / shares.square().sum()))
    assert sorted(effective)[len(effective) // 2] > 4


def test_up_to_128_dimensions_are_those_of_the_embedding():
    assert [float(effective_size(batch_in(size, 30, 0.0))) for size in (30, 128)] == [30, 128]
    for size in (129, 2048):
        assert 20 < float(effective_size(batch_in(size, 30, 0.0))) < 40
        assert float(effective_size(batch_in(size, 30, 5.0))) == 3
