"""A last stage without a stride."""

import pytest
import torch

from metric_learning.models import build_model, save_weights

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "name",
    [
        *("ResNet18", "SE_ResNeXt50_32x4d", "test_resnet", "resnet26d"),
        *("legacy_seresnet18", "res2net50_26w_4s", "resnest14d"),
    ],
)
def test_the_map_has_twice_the_side_and_the_weights_are_the_same(name):
    models = {}
    for stride in (2, 1):
        torch.manual_seed(0)
        models[stride] = build_model(name, last_stride=stride).eval()
    with torch.inference_mode():
        maps = {stride: model.backbone.forward_features(IMAGES) for stride, model in models.items()}
    assert maps[2].shape[2:] == (2, 2) and maps[1].shape[2:] == (4, 4)
    states = [model.state_dict() for model in models.values()]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_its_first_block_computes_what_the_strided_one_leaves_out():
    strided, dense = (build_model("ResNet50", last_stride=stride).eval() for stride in (2, 1))
    dense.load_state_dict(strided.state_dict())
    maps = torch.randn(1, 1024, 6, 6, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = strided.backbone.layer4[0](maps)
        found = dense.backbone.layer4[0](maps)
    assert found.shape[2:] == (6, 6)
    torch.testing.assert_close(found[:, :, ::2, ::2], expected)


def test_weights_of_the_strided_model_load(tmp_path):
    model = build_model("test_resnet")
    path = tmp_path / "weights.safetensors"
    save_weights(model, path, {"model": "test_resnet", "embedding_size": 0})
    loaded = build_model("test_resnet", 0, path, last_stride=1)
    state = model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in loaded.state_dict().items())


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet", "resnetblur18"])
def test_a_model_that_cannot_is_an_error(name):
    with pytest.raises(ValueError, match="--last_stride=1 is for ResNets .* leave the flag out"):
        build_model(name, last_stride=1)


def test_another_stride_is_an_error():
    with pytest.raises(ValueError, match="--last_stride=1 or 2, found 3"):
        build_model("test_resnet", last_stride=3)
