"""The reference's update against a NumPy transcription, and which weight is trained how."""

import numpy as np
import pytest
import torch
from torch import nn

import train_elem
from metric_learning.common.flags import parse_flags
from metric_learning.engine.options.parts import OptimizerOptions, ScheduleOptions, pick
from metric_learning.engine.options.training import settle
from metric_learning.engine.parallel.world import World
from metric_learning.engine.train.optimizers import build_optimizer, restore_optimizer
from metric_learning.engine.train.train import rate_at, set_rate
from metric_learning.losses import build_loss
from metric_learning.reader import load_image_set


def options(*argv, part=OptimizerOptions, **others):
    flags = parse_flags("", train_elem.FLAGS, ["--lr=0.1", "--lr_steps=2,4", *argv])
    return pick(part, flags, **others)


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
    optimizer = build_optimizer(nn.Identity(), nn.Identity(), criterion, options())
    for step in range(5):
        set_rate(optimizer, rate_at(options(part=ScheduleOptions, epoch_size=12), step))
        optimizer.zero_grad()
        criterion(torch.tensor(features), torch.tensor(labels))[0].backward()
        optimizer.step()
    expected = numpy_trajectory(*start, features, labels, 5)
    for parameter, value in zip(criterion.parameters(), expected, strict=True):
        np.testing.assert_allclose(parameter.detach().numpy(), value, rtol=1e-10, atol=1e-14)


def test_every_parameter_is_trained_once_and_heads_at_their_own_rate():
    model = nn.ModuleDict({"trunk": nn.Linear(4, 3), "embedding": nn.Linear(3, 2)})
    criterion = build_loss("arcmargin", class_dim=5, embedding_size=2)
    optimizer = build_optimizer(model, model["embedding"], criterion, options("--lr_head_mult=10"))
    set_rate(optimizer, 0.02)
    rate_of = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rate_of) == sum(len(group["params"]) for group in optimizer.param_groups) == 5
    assert rate_of[id(model["trunk"].weight)] == 0.02
    assert rate_of[id(model["embedding"].weight)] == rate_of[id(criterion.weight)] == 0.2


def test_a_head_rate_without_a_head_is_an_error():
    with pytest.raises(ValueError, match="--lr_head_mult is not used"):
        build_optimizer(
            nn.Linear(2, 2), nn.Identity(), build_loss("eml"), options("--lr_head_mult=10")
        )


def test_weights_of_the_loss_may_have_a_rate_of_their_own():
    model = nn.ModuleDict({"trunk": nn.Linear(4, 3), "embedding": nn.Linear(3, 2)})
    criterion = build_loss("arcmargin", class_dim=5, embedding_size=2)
    chosen = options("--lr_head_mult=10", "--lr_loss_mult=100")
    optimizer = build_optimizer(model, model["embedding"], criterion, chosen)
    set_rate(optimizer, 0.02)
    rate_of = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rate_of[id(model["embedding"].weight)] == pytest.approx(0.2)
    assert rate_of[id(criterion.weight)] == pytest.approx(2.0)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_norms_and_biases_may_be_left_out_of_weight_decay(name):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    chosen = options(f"--optimizer={name}", "--decay_norm_and_bias=False", "--weight_decay=0.01")
    optimizer = build_optimizer(model, nn.Identity(), build_loss("eml"), chosen)
    decay_of = {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    assert decay_of[id(model[0].weight)] == 0.01
    others = [model[0].bias, model[1].weight, model[1].bias]
    assert [decay_of[id(parameter)] for parameter in others] == [0.0] * 3
    assert type(optimizer).__name__.lower() == name


def test_nesterov_and_momentum_reach_sgd():
    chosen = options("--nesterov=True", "--momentum=0.99")
    optimizer = build_optimizer(nn.Linear(2, 2), nn.Identity(), build_loss("eml"), chosen)
    assert optimizer.defaults["nesterov"] and optimizer.defaults["momentum"] == 0.99


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--optimizer=adam", "--momentum=0.5"], r"--momentum is not used \(--optimizer=adam\)"),
        (["--optimizer=adamw", "--nesterov=True"], r"--nesterov is not used \(--optimizer=adamw\)"),
        (["--nesterov=True", "--momentum=0"], "--nesterov needs a --momentum above 0"),
    ],
)
def test_flags_that_the_optimizer_does_not_use_are_refused(argv, message, toy_tree):
    flags = parse_flags("", train_elem.FLAGS, argv)
    with pytest.raises(ValueError, match=message):
        settle(flags, load_image_set("folder", toy_tree, "train"), World())


def test_a_rate_for_weights_that_the_loss_lacks_is_an_error():
    chosen = options("--lr_loss_mult=2")
    with pytest.raises(ValueError, match="--lr_loss_mult is not used"):
        build_optimizer(nn.Linear(2, 2), nn.Identity(), build_loss("eml"), chosen)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_the_state_of_an_optimizer_that_was_not_fused_goes_on(name):
    """As of a run that began on a CPU with an earlier version, and goes on on a GPU."""

    def trained(is_fused, num_steps):
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
        built = build_optimizer(model, nn.Identity(), nn.Identity(), options(f"--optimizer={name}"))
        for group in built.param_groups:
            group["fused"] = is_fused
        for _ in range(num_steps):
            built.zero_grad()
            model(torch.ones(2, 4)).square().sum().backward()
            built.step()
        return model, built

    started, plain = trained(False, 2)
    model, fused = trained(True, 0)
    model.load_state_dict(started.state_dict())
    restore_optimizer(fused, plain.state_dict())
    assert all(group["fused"] for group in fused.param_groups)
    fused.zero_grad()
    model(torch.ones(2, 4)).square().sum().backward()
    fused.step()
    torch.testing.assert_close(model.weight, trained(True, 3)[0].weight)
