"""Learning rates by step, and the reference's update against a NumPy transcription."""

from argparse import Namespace

import numpy as np
import pytest
import torch
from torch import nn

from engine.schedules import build_optimizer, learning_rate, set_learning_rate
from losses import build_loss


def flags(**values):
    defaults = {
        "lr": 0.1,
        "lr_strategy": "piecewise_decay",
        "lr_steps": (2, 4),
        "lr_head_mult": 1.0,
        "total_iter_num": 10,
    }
    return Namespace(**defaults | values)


def test_piecewise_decay_divides_by_ten_at_each_step():
    rates = [learning_rate(flags(), step) for step in range(6)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_cosine_decay_goes_from_the_rate_to_zero():
    rates = [learning_rate(flags(lr_strategy="cosine_decay"), step) for step in (0, 5, 10)]
    assert rates == pytest.approx([0.1, 0.05, 0.0])


def test_constant_rate():
    assert learning_rate(flags(lr_strategy="constant"), 7) == 0.1


def numpy_trajectory(weights, bias, features, labels, num_steps):
    """SGD of the reference, section 5: velocity = 0.9 velocity + gradient + 1e-4 parameter."""
    parameters = [weights.copy(), bias.copy()]
    velocities = [np.zeros_like(weights), np.zeros_like(bias)]
    for step in range(num_steps):
        rate = 0.1 * 0.1 ** sum(step >= boundary for boundary in (2, 4))
        logits = features @ parameters[0].T + parameters[1]
        shifted = np.exp(logits - logits.max(1, keepdims=True))
        error = shifted / shifted.sum(1, keepdims=True)
        error[np.arange(len(labels)), labels] -= 1
        error /= len(labels)
        gradients = [error.T @ features, error.sum(0)]
        for i, gradient in enumerate(gradients):
            velocities[i] = 0.9 * velocities[i] + gradient + 1e-4 * parameters[i]
            parameters[i] = parameters[i] - rate * velocities[i]
    return parameters


def test_five_updates_are_the_reference_s():
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(12, 5)), rng.integers(0, 3, 12)
    criterion = build_loss("softmax", class_dim=3, embedding_size=5).double()
    start = [parameter.detach().numpy().copy() for parameter in criterion.parameters()]
    optimizer = build_optimizer(nn.Identity(), nn.Identity(), criterion, flags())
    for step in range(5):
        set_learning_rate(optimizer, learning_rate(flags(), step))
        optimizer.zero_grad()
        criterion(torch.tensor(features), torch.tensor(labels))[0].backward()
        optimizer.step()
    expected = numpy_trajectory(*start, features, labels, 5)
    for parameter, value in zip(criterion.parameters(), expected, strict=True):
        np.testing.assert_allclose(parameter.detach().numpy(), value, rtol=1e-10)


def test_every_parameter_is_trained_once_and_heads_at_their_own_rate():
    model = nn.ModuleDict({"trunk": nn.Linear(4, 3), "embedding": nn.Linear(3, 2)})
    criterion = build_loss("arcmargin", class_dim=5, embedding_size=2)
    optimizer = build_optimizer(model, model["embedding"], criterion, flags(lr_head_mult=10.0))
    set_learning_rate(optimizer, 0.02)
    rate_of = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rate_of) == sum(len(group["params"]) for group in optimizer.param_groups) == 5
    assert rate_of[id(model["trunk"].weight)] == 0.02
    assert rate_of[id(model["embedding"].weight)] == rate_of[id(criterion.weight)] == 0.2


def test_a_head_rate_without_a_head_is_an_error():
    with pytest.raises(ValueError, match="--lr_head_mult is not used"):
        build_optimizer(nn.Linear(2, 2), nn.Identity(), build_loss("eml"), flags(lr_head_mult=10.0))
