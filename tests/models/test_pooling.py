"""Poolings against loops over the feature map, and their place in backbones."""

import pytest
import torch

from metric_learning.models import build_model
from metric_learning.models.pooling import POOLINGS, GeMPooling

NAIVE = {
    "avg": lambda values: sum(values) / len(values),
    "max": max,
    "avg_max": lambda values: sum(values) / len(values) + max(values),
    "gem": lambda values: (sum(max(v, 1e-6) ** 3 for v in values) / len(values)) ** (1 / 3),
}


@pytest.fixture
def maps():
    return torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)).double()


def test_every_pooling_is_checked():
    assert set(NAIVE) == set(POOLINGS)


@pytest.mark.parametrize("name", POOLINGS)
def test_value_is_that_of_a_loop(name, maps):
    expected = [[NAIVE[name](channel.flatten().tolist()) for channel in image] for image in maps]
    pooled = POOLINGS[name]().double()(maps)
    torch.testing.assert_close(pooled, torch.tensor(expected, dtype=torch.double))
    last = POOLINGS[name]((1, 2), keepdim=True).double()(maps.permute(0, 2, 3, 1))
    torch.testing.assert_close(last, pooled[:, None, None])


@pytest.mark.parametrize("name", POOLINGS)
def test_gradient(name, maps):
    pooling = POOLINGS[name]().double()
    assert torch.autograd.gradcheck(pooling, maps.requires_grad_())


def test_gradient_of_the_exponent(maps):
    def pool(p):
        return torch.func.functional_call(GeMPooling(), {"p": p}, maps)

    assert torch.autograd.gradcheck(pool, torch.tensor([2.5]).double().requires_grad_())


def test_gem_lies_between_mean_and_maximum(maps):
    maps = maps.abs()
    assert torch.allclose(GeMPooling(p=1.0)(maps), maps.mean((2, 3)))
    assert torch.allclose(GeMPooling(p=300.0)(maps), maps.amax((2, 3)), rtol=0.02)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gem_computes_in_float32(dtype):
    maps = torch.full((1, 2, 3, 3), 100.0, dtype=dtype, requires_grad=True)
    pooled = GeMPooling()(maps)
    pooled.sum().backward()
    torch.testing.assert_close(pooled, torch.full((1, 2), 100.0))
    torch.testing.assert_close(maps.grad, torch.full_like(maps, 1 / 9))


def test_gem_of_a_dead_channel_is_finite():
    maps = torch.zeros(1, 2, 3, 3, requires_grad=True)
    pooling = GeMPooling()
    pooling(maps).sum().backward()
    assert maps.grad.isfinite().all() and pooling.p.grad.isfinite().all()


# A plain pooling, one with layers behind it, one that keeps dimensions, one with channels last.
@pytest.mark.parametrize(
    "name", ["ResNet18", "test_convnext", "mobilenetv3_small_050", "swin_tiny_patch4_window7_224"]
)
def test_average_in_place_of_the_own_one_changes_nothing(name):
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    features = {}
    for pooling in ("own", *POOLINGS):
        torch.manual_seed(0)
        model = build_model(name, image_size=64, pooling=pooling).eval()
        with torch.inference_mode():
            features[pooling] = model(images)
        assert features[pooling].shape == (2, model.embedding_size)
    torch.testing.assert_close(features["avg"], features["own"])
    assert not any(torch.allclose(features["own"], features[n]) for n in ("max", "avg_max", "gem"))


@pytest.mark.parametrize("name", ["test_vit", "mixer_s32_224", "test_mambaout"])
def test_a_model_without_such_a_layer_is_an_error(name):
    with pytest.raises(ValueError, match="--pooling=gem replaces the layer .* leave the flag out"):
        build_model(name, pooling="gem")


def test_an_unknown_pooling_is_an_error():
    with pytest.raises(ValueError, match="--pooling=own, avg, max, avg_max, gem, found mean"):
        build_model("ResNet18", pooling="mean")
