"""Tests of models.embedder."""

import pytest
import timm
import torch
from torch import nn

from metric_learning.models import REFERENCE_MODELS, build_model


def test_every_reference_model_is_a_timm_model():
    assert set(REFERENCE_MODELS) == {
        *(f"ResNet{depth}" for depth in (18, 34, 50, 101, 152)),
        "SE_ResNeXt50_32x4d",
    }
    assert all(timm.is_model(name) for name in REFERENCE_MODELS.values())


@pytest.mark.parametrize(("embedding_size", "expected"), [(0, 512), (32, 32)])
def test_embedding_size(embedding_size, expected):
    model = build_model("ResNet18", embedding_size)
    embeddings = model(torch.zeros(2, 3, 64, 64))
    assert embeddings.shape == (2, expected)
    assert model.embedding_size == expected
    assert isinstance(model.embedding, nn.Linear if embedding_size else nn.Identity)


def test_embedding_is_the_linear_layer_on_the_pooled_feature():
    model = build_model("ResNet18", 8).eval()
    images = torch.randn(2, 3, 64, 64)
    features = model.backbone.forward_features(images).mean((2, 3))
    torch.testing.assert_close(model(images), model.embedding(features))


def test_stride_is_in_the_3x3_convolution():
    block = build_model("ResNet50").backbone.layer2[0]
    assert (block.conv1.stride, block.conv2.stride) == ((1, 1), (2, 2))


def test_feature_of_a_model_whose_head_has_a_hidden_layer():
    model = build_model("mobilenetv3_small_050").eval()
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, model.embedding_size)
    assert model.embedding_size != model.backbone.num_features


IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@pytest.mark.parametrize(
    ("name", "own_size", "statistics", "size"),
    [
        ("ResNet18", 224, IMAGENET, 64),
        ("SE_ResNeXt50_32x4d", 224, IMAGENET, 64),
        ("Xception", 299, HALF, 64),
        ("test_resnet", 160, HALF, 64),
        ("seresnet33ts", 256, IMAGENET, 64),
        ("densenet121", 224, IMAGENET, 64),
        ("inception_v3", 299, HALF, 96),
        ("mobilenetv2_035", 224, IMAGENET, 64),
        ("efficientnet_b0", 224, IMAGENET, 64),
        ("regnetx_002", 224, IMAGENET, 64),
        ("convnext_atto", 224, IMAGENET, 64),
        ("vit_tiny_patch16_224", 224, HALF, 64),
        ("vit_small_patch14_dinov2", 518, IMAGENET, 56),
        ("vit_medium_patch32_clip_224", 224, CLIP, 64),
        ("resnet50_clip", 224, CLIP, 64),
        ("swin_tiny_patch4_window7_224", 224, IMAGENET, 56),
        ("mixer_s32_224", 224, HALF, 64),
        ("coatnet_nano_rw_224", 224, HALF, 64),
    ],
)
def test_a_model_of_every_family(name, own_size, statistics, size):
    model = build_model(name, 16, image_size=size).eval()
    assert (model.mean, model.std) == statistics
    with torch.inference_mode():
        embeddings = model(torch.zeros(2, 3, size, size))
    assert embeddings.shape == (2, 16) and embeddings.isfinite().all()
    with torch.device("meta"):  # no time for weights
        assert build_model(name).image_size == (own_size, own_size)


def test_xception_is_chollet_s():
    model = build_model("Xception")
    blocks = [name for name, _ in model.backbone.named_children() if name.startswith("block")]
    assert len(blocks) == 12 and model.embedding_size == 2048
    # Of 22.9 million parameters (Chollet 2017, table 3) 2.0 are the class layer's.
    assert sum(p.numel() for p in model.parameters()) == 22_855_952 - 2048 * 1000 - 1000


def test_vision_transformer_at_another_size():
    model = build_model("vit_tiny_patch16_224", 16, image_size=96).eval()
    assert model(torch.zeros(1, 3, 96, 96)).shape == (1, 16)


def test_a_model_that_takes_no_size_can_be_had_at_its_own():
    with torch.device("meta"):
        assert build_model("levit_128s", image_size=224).image_size == (224, 224)


def test_image_size_is_not_needed_by_convolutional_models():
    model = build_model("ResNet18", image_size=96).eval()
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 512)


def test_same_seed_same_weights():
    states = []
    for _ in range(2):
        torch.manual_seed(5)
        states.append(build_model("ResNet18", 4).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize("name", ["ResNet50", "ResNet18"])
def test_random_weights_are_sane_in_both_modes(name):
    torch.manual_seed(0)
    model = build_model(name, 16)
    for mode in (True, False):
        embeddings = model.train(mode)(torch.randn(4, 3, 64, 64))
        assert torch.isfinite(embeddings).all()
        assert 1e-3 < embeddings.std() < 10
    embeddings.square().sum().backward()
    assert model.backbone.conv1.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("ReNet50", "close to it: ResNet50"),
        ("resnet 18", "ResNet18"),
        ("zzz", "expected ResNet18"),
        ("resnet50.no_such_tag", "cannot build model"),
        ("hf-hub:timm/resnet50", "unknown model"),
    ],
)
def test_unknown_name(name, part):
    with pytest.raises(ValueError, match=part) as caught:
        build_model(name)
    assert "\n" not in str(caught.value)


def test_negative_embedding_size():
    with pytest.raises(ValueError, match="not -1"):
        build_model("ResNet18", -1)
