"""Normalisations of the pooled feature."""

import pytest
import torch

from metric_learning.models import build_model
from metric_learning.models.feature_norm import FEATURE_NORMS


@pytest.fixture
def features():
    rng = torch.Generator().manual_seed(0)
    return 3 + 2 * torch.randn(6, 4, generator=rng, dtype=torch.double)


def test_layer_norm_is_that_of_a_loop(features):
    norm = FEATURE_NORMS["layernorm"](4)
    assert not norm.state_dict()
    for row, normalised in zip(features, norm(features), strict=True):
        values = row.tolist()
        mean = sum(values) / 4
        variance = sum((value - mean) ** 2 for value in values) / 4
        expected = [(value - mean) / (variance + 1e-5) ** 0.5 for value in values]
        assert normalised.tolist() == pytest.approx(expected)


def test_bnneck_is_batch_norm_without_a_bias(features):
    norm = FEATURE_NORMS["bnneck"](4).double()
    with torch.no_grad():
        norm.weight.uniform_(1, 2)
    expected = (features - features.mean(0)) / (features.var(0, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(norm(features), expected * norm.weight)
    norm(features).square().sum().backward()
    assert norm.weight.grad is not None and norm.bias.grad is None and not norm.bias.any()


@pytest.mark.parametrize("name", FEATURE_NORMS)
@pytest.mark.parametrize("embedding_size", [0, 8])
def test_it_lies_between_pooling_and_embedding_layer(name, embedding_size):
    model = build_model("test_resnet", embedding_size, feature_norm=name)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    model.eval()
    expected = model.embedding(
        FEATURE_NORMS[name](model.feature_size).eval()(model.backbone(images))
    )
    torch.testing.assert_close(model(images), expected)


def test_an_unknown_norm_is_an_error():
    with pytest.raises(ValueError, match="--feature_norm=none, layernorm, bnneck, found l2"):
        build_model("test_resnet", feature_norm="l2")
