"""The losses of the reference's first version: its values, its gradients, and where it differs."""

import numpy as np
import pytest
import torch
from naive_pairs import FORMULAS

from metric_learning.losses import V1_LOSSES, build_loss

LABELS = {
    "tripletloss": [0, 0, 1, 2, 2, 0, 1, 1, 3],
    "quadrupletloss": [4, 4, 4, 1, 1, 1, 0, 0, 0],
    "emlloss": [4, 4, 4, 1, 1, 1, 0, 0, 0],
}
TODAY = {"tripletloss": "triplet", "quadrupletloss": "quadruplet", "emlloss": "eml"}


def criterion_of(name, **options):
    if name != "tripletloss":
        options["samples_each_class"] = 3
    return build_loss(name, **options)


def batch(name, scale=1.0, seed=0):
    rows = scale * np.random.default_rng(seed).normal(size=(9, 5))
    return torch.tensor(rows, requires_grad=True), torch.tensor(LABELS[name])


def slopes(formula, criterion, rows, labels):
    """Gradient of a formula by central differences, (B, D)."""
    found = np.zeros_like(rows)
    for place in np.ndindex(*rows.shape):
        step = np.zeros_like(rows)
        step[place] = 1e-6
        found[place] = formula(criterion, rows + step, labels)
        found[place] -= formula(criterion, rows - step, labels)
    return found / 2e-6


# Raw features of EML: gaps below 20, about it, and beyond, where the penalty is linear.
@pytest.mark.parametrize("scale", [0.3, 1.5, 4.0])
@pytest.mark.parametrize("name", V1_LOSSES)
def test_value_and_gradient_are_those_of_v1(name, scale):
    criterion = criterion_of(name)
    for seed in range(3):
        embeddings, labels = batch(name, scale, seed)
        loss = criterion(embeddings, labels)
        loss.backward()
        rows = embeddings.detach().numpy()
        expected = FORMULAS[name](criterion, rows, labels.tolist())
        assert loss.item() == pytest.approx(expected, rel=1e-9)
        numeric = slopes(FORMULAS[name], criterion, rows, labels.tolist())
        np.testing.assert_allclose(embeddings.grad.numpy(), numeric, rtol=1e-5, atol=1e-7)


def test_an_extreme_of_the_quadruplet_counts_once():
    """The farthest positives and the closest negatives twice: the first of each has all of it."""
    rows = torch.eye(4, dtype=torch.float64)[[0, 1, 2, 3]].requires_grad_()
    criterion = build_loss("quadrupletloss")
    criterion(rows, torch.tensor([0, 0, 1, 1])).backward()
    # |x_0 - x_1| - |x_0 - x_2|, all distances being equal
    expected = torch.tensor([[0, -1, 1, 0], [-1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
    torch.testing.assert_close(rows.grad, expected.double() / 2**0.5)


@pytest.mark.parametrize("name", V1_LOSSES)
def test_a_collapsed_batch_costs_the_margin_and_has_no_gradient(name):
    labels = torch.tensor(LABELS[name])
    for value in (0.0, 1.0):
        embeddings = torch.full((9, 5), value, requires_grad=True)
        loss = criterion_of(name)(embeddings, labels)
        loss.backward()
        assert loss.item() == pytest.approx(1.0 if name == "emlloss" else 0.1)
        assert embeddings.grad.abs().max() < 1e-8


@pytest.mark.parametrize("name", V1_LOSSES)
def test_copies_among_others_have_a_finite_gradient(name):
    embeddings, labels = batch(name)
    rows = embeddings.detach()
    rows[1] = rows[0]  # a positive pair at distance 0
    rows[5] = rows[8]  # and a negative one
    rows.requires_grad_()
    criterion_of(name)(rows, labels).backward()
    assert rows.grad.isfinite().all()


@pytest.mark.parametrize("name", V1_LOSSES)
def test_it_is_another_loss_than_today_s(name):
    embeddings, labels = batch(name)
    options = {} if name == "tripletloss" else {"samples_each_class": 3}
    today = build_loss(TODAY[name], **options)(embeddings, labels)
    assert criterion_of(name)(embeddings, labels).item() != pytest.approx(today.item(), rel=1e-2)


@pytest.mark.parametrize("name", V1_LOSSES)
def test_what_is_not_a_number_stays_so(name):
    embeddings, labels = batch(name)
    rows = embeddings.detach() * torch.nan
    assert criterion_of(name)(rows, labels).isnan()
