"""Losses over several processes (gloo) against one process with the whole batch."""

import pytest
import small_training
import torch

from metric_learning.engine.parallel.sharded_head import build_sharded_loss
from metric_learning.engine.parallel.world import World
from metric_learning.losses import ELEM_LOSSES, SplittableLoss, build_loss


@pytest.fixture(scope="module")
def alone():
    return small_training.train_all(World())


@pytest.fixture(scope="module", params=[2, 3])
def several(request, torchrun, tmp_path_factory):
    file = tmp_path_factory.mktemp("ranks") / "found.pt"
    torchrun([small_training.__file__, file], request.param)
    return torch.load(file)


def test_gathered_losses_are_those_of_one_process(alone, several):
    for name in small_training.PAIRS:
        torch.testing.assert_close(several[name], alone[name], rtol=1e-5, atol=1e-6)


def test_a_sharded_head_is_the_whole_one(alone, several):
    """Loss, gradients, classes ahead, initial weights, and what is saved and resumed."""
    for name in small_training.HEADS:
        for optimizer in small_training.OPTIMIZERS:
            ours, theirs = several[f"{name} {optimizer}"], alone[f"{name} {optimizer}"]
            assert ours["first"].keys() == theirs["first"].keys()
            for part, weight in theirs["first"].items():
                assert torch.equal(ours["first"][part], weight)
            # Sums are in another order, and a scale of 200 multiplies what that rounds.
            torch.testing.assert_close(ours, theirs, rtol=5e-4, atol=5e-5)


def test_the_limit_of_the_reference_is_reached(alone):
    """Without the limit some image of the first step would cost more than 64 + log C."""
    training = small_training.start_head("limited", "sgd", World(), seed=1)
    rows, labels = small_training.share_of_batch(0, "labels", World())
    with torch.no_grad():
        logits = training.criterion(training.network(rows), labels)[1]
    assert (logits.amax(1) - logits[range(len(labels)), labels]).max() > 64


@pytest.mark.parametrize(
    "name", [name for name, loss in ELEM_LOSSES.items() if issubclass(loss, SplittableLoss)]
)
def test_initial_weights_are_drawn_in_blocks_as_at_once(name, monkeypatch):
    options = {"class_dim": 103, "embedding_size": 7}
    torch.manual_seed(5)
    whole = build_loss(name, **options).weight
    following = torch.rand(1)
    monkeypatch.setattr("metric_learning.engine.parallel.sharded_head.DRAWN_ROWS", 16)
    shards = []
    for rank in range(3):
        torch.manual_seed(5)
        shards.append(build_sharded_loss(World(rank, 3), name, **options).loss.weight)
        assert torch.equal(torch.rand(1), following)
    assert torch.equal(torch.cat(shards), whole)


def test_a_shard_has_a_class_and_a_loss_that_can_be_split(monkeypatch):
    with pytest.raises(ValueError, match="found 2 classes for 3 processes"):
        build_sharded_loss(World(0, 3), "softmax", class_dim=2, embedding_size=4)
    monkeypatch.setitem(ELEM_LOSSES, "whole", torch.nn.CrossEntropyLoss)
    with pytest.raises(ValueError, match="loss_name=whole .but with softmax, arcmargin, .*: leave"):
        build_sharded_loss(World(), "whole", class_dim=9, embedding_size=4)
    options = {"class_dim": 9, "embedding_size": 4}
    for option in ("label_smoothing", "class_dropout"):
        with pytest.raises(ValueError, match=f"not possible with --{option}: leave one out, or"):
            build_sharded_loss(World(0, 2), "softmax", **options, **{option: 0.1})


def test_the_limit_is_not_that_of_other_losses(alone):
    """A whole cosface of wide logits costs what its formula says, and a split one the same."""
    training = small_training.start_head("unlimited", "sgd", World(), seed=1)
    rows, labels = small_training.share_of_batch(0, "labels", World())
    with torch.no_grad():
        loss, logits = training.criterion(training.network(rows), labels)
        shifted = logits.double() - logits.double().amax(1, keepdim=True)
        costs = shifted.exp().sum(1).log() - shifted[range(len(labels)), labels]
    assert costs.max() > 70
    assert loss.item() == pytest.approx(costs.mean().item(), rel=1e-5)
