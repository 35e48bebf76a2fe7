"""Stochastic depth of timm's models."""

import pytest
import timm
import torch

from metric_learning.models import build_model

IMAGES = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def embedded(model, is_training):
    torch.manual_seed(3)
    with torch.no_grad():
        return model.train(is_training)(IMAGES)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "test_resnet", "mobilenetv2_100"])
def test_blocks_are_left_out_as_timm_leaves_them_out(name):
    size = 64 if name.startswith("vit") else None
    options = {"img_size": 64} if size else {}
    model = build_model(name, image_size=size, drop_path=0.6)
    whole = build_model(name, image_size=size)
    of_timm = timm.create_model(name, num_classes=0, drop_path_rate=0.6, **options)
    for parameter in model.parameters():
        if parameter.ndim == 1:  # the last norm of a branch starts at 0, which leaves nothing out
            torch.nn.init.constant_(parameter, 0.5)
    for other in (whole.backbone, of_timm):
        other.load_state_dict(model.backbone.state_dict())
    assert torch.equal(embedded(model, False), embedded(whole, False))
    assert torch.equal(embedded(model, True), embedded(of_timm, True))
    assert not torch.equal(embedded(model, True), embedded(whole, True))


def test_a_model_without_such_blocks_is_an_error():
    with pytest.raises(ValueError, match="cannot build model vgg11: .*drop_path_rate"):
        build_model("vgg11", drop_path=0.1)
