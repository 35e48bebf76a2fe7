"""Losses of pytorch-metric-learning by name."""

import sys

import pytest
import torch

from metric_learning.losses import build_loss, layout_of, loss_options

pml = pytest.importorskip("pytorch_metric_learning.losses")


def batch():
    rng = torch.Generator().manual_seed(0)
    return torch.randn(8, 6, generator=rng), torch.tensor([0, 1, 2, 3, 3, 2, 1, 0])


def test_value_and_options_are_the_package_s():
    embeddings, labels = batch()
    ours = build_loss("pml:IntraPairVarianceLoss", pos_eps=0.2, neg_eps=0.05)
    expected = pml.IntraPairVarianceLoss(pos_eps=0.2, neg_eps=0.05)(embeddings, labels)
    assert torch.equal(ours(embeddings, labels), expected)
    assert layout_of("pml:IntraPairVarianceLoss") == "labels"
    assert list(loss_options("pml:IntraPairVarianceLoss"))[:2] == ["pos_eps", "neg_eps"]


@pytest.mark.parametrize("name", ["ProxyAnchorLoss", "SoftTripleLoss", "SubCenterArcFaceLoss"])
def test_weights_of_a_loss_are_its_parameters(name):
    embeddings, labels = batch()
    criterion = build_loss(f"pml:{name}", class_dim=4, embedding_size=6)
    [weights] = criterion.parameters()
    criterion(embeddings, labels).backward()
    assert 6 in weights.shape and weights.grad.abs().sum() > 0
    with pytest.raises(ValueError, match=r"expected labels in 0..3 .*found 0..9"):
        criterion(embeddings, labels * 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    embeddings, labels = batch()
    criterion = build_loss("pml:NTXentLoss", temperature=0.1)
    half = criterion(embeddings.to(dtype), labels)
    assert half.dtype == torch.float32
    assert torch.equal(half, criterion(embeddings.to(dtype).float(), labels))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("NoSuchLoss", {}, "has no loss 'pml:NoSuchLoss': AngularLoss, ArcFaceLoss"),
        ("BaseMetricLossFunction", {}, "has no loss"),
        ("NCALoss", {"scale": 2.0}, "does not use scale: its options are softmax_scale"),
        ("ProxyNCALoss", {"class_dim": 4}, "needs embedding_size"),
        ("CircleLoss", {"distance": pml.NCALoss().distance}, "pml:CircleLoss cannot be built"),
    ],
)
def test_what_the_package_does_not_have_is_one_line(name, options, message):
    with pytest.raises(ValueError, match=message) as error:
        build_loss(f"pml:{name}", **options)
    assert "\n" not in str(error.value)


def test_without_the_package_one_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning.losses", None)
    with pytest.raises(ValueError, match="pml:NCALoss needs .*: pip install pytorch-metric-learn"):
        build_loss("pml:NCALoss")
